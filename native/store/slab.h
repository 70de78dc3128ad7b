// A base's stored pages in one shared-memory file that outlives the agent: header page (magic, version,
// base id, page count, address space, k, checksums), per-page checksums, the pages, 4 KiB aligned, and the
// agent's meta, which says whose they are. Written once, sealed, never changed: decoders depend on it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "codec/base_view.h"
#include "image/image.h"
#include "store/shm_file.h"

namespace medes {

class Slab {
 public:
  // Copies the listed image pages (all when empty) into a new file `path` (written under a temporary
  // name, sealed, then renamed). Throws store_full, already_exists, io.
  static std::shared_ptr<Slab> create(const std::string& path, uint64_t base_id, const MemoryImage& image,
                                      std::span<const uint64_t> pages, Bytes meta = {});
  // Maps an existing slab read-only; checks header checksum. Throws not_found, corrupt, permission_denied,
  // unsupported (written by a newer version that says that this one cannot read it).
  static std::shared_ptr<Slab> open(const std::string& path, Owners owners = Owners::us);
  ~Slab();

  uint64_t base_id() const;
  uint64_t page_count() const;
  const AddressSpace& space() const;
  Bytes bytes() const;  // the stored pages
  Bytes meta() const;   // opaque to the core; empty in a slab of version 1
  BaseView view() const;
  std::span<const uint64_t> page_checksums() const;   // one a page
  bool verify(uint64_t first, uint64_t count) const;  // compares with the stored checksums
  const std::string& path() const;
  uint64_t file_bytes() const;
  uint64_t pages_begin() const;  // of bytes() in the file
  void unlink();                 // idempotent; the mapping stays valid until the last owner is gone

 private:
  Slab();
  static std::shared_ptr<Slab> read(const std::string& path, Owners owners, bool sealed = false);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace medes
