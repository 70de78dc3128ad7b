// The bases that one image refers to, present as memory: a local slab is mapped and always present; a
// remote base is a reservation of address space that fills as extents are read. Shared by the encode
// pipeline, the restore pipeline and the fault server. Thread-safe.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "bases/kept_pages.h"
#include "codec/base_view.h"
#include "transport/page_reader.h"

namespace medes {

class Slab;

class BaseSet {
 public:
  BaseSet();
  ~BaseSet();

  // Slot numbers are handed out in call order and are the base_slot of Extent.
  uint32_t add_local(std::shared_ptr<Slab> slab);
  uint32_t add_remote(uint64_t base_id, uint64_t page_count, AddressSpace space,
                      std::shared_ptr<PageReader> reader);

  size_t size() const;
  BaseView view(uint32_t slot) const;
  bool local(uint32_t slot) const;
  std::vector<BaseView> views() const;
  // Slots reordered as `base_ids` lists them; throws not_found for an id that is not in the set.
  std::vector<BaseView> views_for(std::span<const uint64_t> base_ids) const;
  uint32_t slot_of(uint64_t base_id) const;  // throws not_found

  // Makes the extents present: misses are rounded to pages, coalesced, read in one batch per peer.
  // Blocks. Returns ok, or the first failure (nothing is then assumed present that did not arrive).
  Code ensure(std::span<const Extent> extents, std::chrono::nanoseconds timeout);

  // Reads under way. What has not come when it is destroyed is not present; that waits for nobody but the
  // device.
  class Load {
   public:
    ~Load();
    Load(const Load&) = delete;
    Load& operator=(const Load&) = delete;
    Code finish(std::chrono::nanoseconds timeout);  // blocks; as ensure()

   private:
    friend class BaseSet;
    struct Parts;
    explicit Load(std::unique_ptr<Parts> parts);
    std::unique_ptr<Parts> parts_;
  };
  // Asks for what is missing and does not wait: the reads of several of them overlap. Null when all is there
  // or asked for by others. Whoever has one waits for no other thread's pages before it is finished. Throws
  // invalid_argument.
  // `others`: whether others read some of it.
  std::unique_ptr<Load> begin(std::span<const Extent> extents, bool& others);

  // What of remote bases the node keeps beyond this set. keep_in() comes before any use.
  void keep_in(std::shared_ptr<KeptPages> pages, std::string domain);
  std::shared_ptr<const KeptBase> kept(uint32_t slot) const;  // null for a local one, and when nothing is
  void count_kept_used(uint64_t pages) const;
  void drop_kept();  // what was made of it is wrong
  // What these extents read is to be kept ...
  void want(std::span<const Extent> extents);
  // ... which this does with all that was wanted and has come. Blocks for as long as copying takes.
  void keep_wanted();

  // Gives remote pages back to the system (after an op); local slabs are unaffected.
  void drop_remote();

  uint64_t remote_read_bytes() const;
  uint64_t remote_pages_read() const;
  BytesByTransport remote_bytes_by_transport() const;  // by what carried them

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace medes
