// What is kept of a child that was forked while pages were missing, until its own are in: which of them it
// still misses, where they lie, and where its userfaultfd is. A small shared-memory file beside the sandbox
// file:
//   0      ChildHeader, padded with zeros to 4096
//   4096   ChildState | ChangeRecord | one state byte an image page, each part 64-byte aligned; mapped
//   writable
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/limits.h"
#include "store/change_record.h"

namespace medes {

inline constexpr uint64_t kChildMagic = 0x3148434453454Dull;  // "MESDCH1\0"

struct ChildHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t process;  // of the layout, that it was forked from
  uint64_t file_bytes;
  uint64_t page_count;  // of the image
  uint64_t inode;       // of its userfaultfd
  uint64_t header_checksum;
};
static_assert(offsetof(ChildHeader, process) == 12 && offsetof(ChildHeader, inode) == 32);
static_assert(sizeof(ChildHeader) == 48);

struct ChildState {
  Holder holders[2];              // the second one while it changes hands
  std::atomic<uint32_t> done{0};  // all its pages are in: the userfaultfd may be gone
};
static_assert(offsetof(ChildState, done) == 32);

// Everything that must hold of a header before any length in it is used. Throws corrupt, unsupported.
void check_child_header(const ChildHeader& header, uint64_t file_bytes, const std::string& path);
// What lies behind the header's page, which is `changing`.
struct ChildParts {
  ChildState& state;
  ChangeRecord& record;
  std::span<std::atomic<uint8_t>> pages;
};
ChildParts child_parts(const ChildHeader& header, MutableBytes changing);

class ChildFile {
 public:
  // Throws store_full, already_exists, io. `states` are taken over as they are, `moves` as the first bank.
  static std::shared_ptr<ChildFile> create(const std::string& sandbox_path, uint32_t process, uint64_t inode,
                                           const Holder& holder, std::span<const std::byte> states,
                                           std::span<const MovedPages> moves);
  static std::shared_ptr<ChildFile> open(const std::string& path);  // throws not_found, corrupt, unsupported
  static std::string path_of(const std::string& sandbox_path, uint64_t inode);
  static std::vector<std::string> paths_of(const std::string& sandbox_path);
  ~ChildFile();

  // Where in the file ChildState::done is, and a descriptor of it: for the keeper to set.
  static constexpr uint64_t kDoneOffset = kPageBytes + offsetof(ChildState, done);
  int fd() const;
  uint32_t process() const;
  uint64_t inode() const;
  ChangeRecord& record();
  std::span<std::atomic<uint8_t>> page_states();
  std::span<Holder, 2> holders();
  void add_holder(const Holder& holder);  // beside the one there is
  void keep_only(const Holder& holder);
  bool done() const;
  void set_done();
  void unlink() noexcept;

 private:
  ChildFile();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace medes
