// A memory image: what of a sandbox's memory lives in private pages, where it lies, and the bytes. The unit
// of all work downstream is the *image page index*: 0 … page_count-1, in process order, then ascending
// address.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/limits.h"

namespace medes {

struct AddressRange {
  uint64_t begin = 0, end = 0;  // bytes, [begin, end)
  bool contains(uint64_t a) const { return a - begin < end - begin; }
};

// Address ranges in which an aligned 8-byte word counts as a pointer. `value_only` is for memory whose
// maps are unknown (guest memory, unikernels): ranges are then found from the values themselves.
struct AddressSpace {
  std::vector<AddressRange> ranges;  // ascending, disjoint, at most kMaxRanges
  bool value_only = false;
};

enum class VmaKind : uint8_t { anonymous, heap, stack, file_private, shared_anonymous, memfd, other };

struct Vma {
  uint64_t begin = 0, end = 0, offset = 0, inode = 0;
  uint32_t device = 0;
  uint32_t prot = 0;  // PROT_*
  bool shared = false;
  VmaKind kind = VmaKind::other;
  std::string path;
};

// Private memory that is of no file: what an eviction may register and give back.
inline bool is_anonymous(const Vma& v) {
  return v.kind == VmaKind::anonymous || v.kind == VmaKind::heap || v.kind == VmaKind::stack;
}

// `count` consecutive resident pages at `address` of process `process`; image pages first_page….
struct PageRun {
  uint32_t process = 0;  // index into processes
  uint64_t address = 0;
  uint64_t first_page = 0;
  uint64_t count = 0;
};

// Written pages of a program's or library's data, still part of its file mapping when they were captured. The
// layout shows them as the anonymous mapping they are from the eviction on.
struct FileRun {
  uint64_t begin = 0, end = 0;
  uint64_t offset = 0, inode = 0;  // what of which file is mapped at `begin`
  uint32_t device = 0;
  uint32_t prot = 0;
};

// Pages shared copy-on-write, as procfs/fork_shared.h found them; each counted once.
struct ForkSharedPages {
  uint64_t outside = 0;  // not in the image: processes outside the sandbox have them too
  uint64_t kept = 0;     // not in the image: more of the sandbox's processes share them than was allowed
  uint64_t copied = 0;   // what a restore will hold beyond what was held
};

struct ProcessLayout {
  pid_t pid = 0;
  uint64_t start_time_ticks = 0;  // /proc/pid/stat field 22: tells a reused pid from the same process
  std::vector<Vma> vmas;
};

struct ImageLayout {
  std::vector<ProcessLayout> processes;
  std::vector<PageRun>
      runs;  // ascending first_page, no gaps: runs[i].first_page + count == runs[i+1].first_page
  AddressSpace space;
  uint64_t page_count = 0;

  std::vector<std::byte> serialise() const;  // format: docs/live-driver.md
  static ImageLayout parse(Bytes data);      // throws corrupt
  // True when image pages i and i+1 are neighbours in one address space.
  bool adjacent(uint64_t page) const;
  const PageRun& run_of(uint64_t page) const;  // throws invalid_argument
  // Image page of a process's address, kNoPage when that address is not in the image.
  uint64_t find(uint32_t process, uint64_t address) const;
  static constexpr uint64_t kNoPage = ~0ull;
};

// The bytes of an image are *copied* (captured, or from a buffer) or *live*: they stay in the processes,
// which run on, and each read sees what is there at that moment. A live image costs no memory but its layout,
// so that a dedup op needs none of the sandbox's size. Its pages are read in blocks of kReadPages, which stay
// in a core's cache while they go through all the stages of an op.
class OpenMemories;

class MemoryImage {
 public:
  static constexpr uint64_t kReadPages = 64;

  MemoryImage(ImageLayout layout, size_t page_count);  // room for a copy of page_count pages
  static std::shared_ptr<MemoryImage> live(ImageLayout layout);
  ~MemoryImage();
  MemoryImage(const MemoryImage&) = delete;
  MemoryImage& operator=(const MemoryImage&) = delete;

  // An image of a flat buffer (length rounded up to a page with zeros): guest memory, an ELF load
  // image, a test. `address` is where byte 0 lies; value_only when maps are not known.
  static std::shared_ptr<MemoryImage> from_buffer(Bytes data, uint64_t address, AddressSpace space);
  // A copy of a live image, read on all cores. Blocks. Throws as read().
  std::shared_ptr<MemoryImage> copy() const;

  const ImageLayout& layout() const { return layout_; }
  ImageLayout& layout() { return layout_; }
  uint64_t page_count() const { return layout_.page_count; }
  bool is_live() const { return pages_ == nullptr; }
  // Of copied images only.
  const std::byte* page(uint64_t i) const { return pages_ + i * kPageBytes; }
  std::byte* page(uint64_t i) { return pages_ + i * kPageBytes; }
  Bytes bytes() const { return {pages_, static_cast<size_t>(page_count() * kPageBytes)}; }

  // Pages first … first + count - 1, one after the other: in place, or read into `buffer` (count pages),
  // which the answer then points to. A page that a running process does not have any more is zeros. Blocks.
  // Throws process_gone, permission_denied. Safe from any thread.
  const std::byte* read(uint64_t first, uint64_t count, std::byte* buffer) const;
  // The same of ascending pages anywhere; always into `buffer`.
  void gather(std::span<const uint64_t> pages, std::byte* buffer) const;

  // What was encoded of a page of a live image, and whether other bytes are that: by a 128-bit digest with a
  // seed of this image alone. A copied image has the bytes themselves. One thread a page at a time.
  void note_encoded(uint64_t page, const std::byte* bytes) const;
  bool is_encoded(uint64_t page, const std::byte* bytes) const;

  // Ascending; none where the image does not come from a process.
  std::span<const FileRun> file_runs(uint32_t process) const {
    return process < file_runs_.size() ? std::span<const FileRun>(file_runs_[process])
                                       : std::span<const FileRun>();
  }
  const ForkSharedPages& fork_shared() const { return fork_shared_; }
  void set_fork_shared(const ForkSharedPages& pages) { fork_shared_ = pages; }
  void set_file_runs(std::vector<std::vector<FileRun>> runs) { file_runs_ = std::move(runs); }

 private:
  explicit MemoryImage(ImageLayout layout);

  ImageLayout layout_;
  std::unique_ptr<OpenMemories> memories_;       // of a live image
  std::vector<std::vector<FileRun>> file_runs_;  // by process
  ForkSharedPages fork_shared_;
  std::byte* pages_ = nullptr;
  size_t mapped_bytes_ = 0;
  uint64_t seed_ = 0;
  mutable std::vector<Digest128> encoded_;  // of a live image, by page; all zero: not encoded yet
};

// Room for `pages` pages, aligned like them. Kept by a thread from block to block: fresh memory is slow.
class PageBuffer {
 public:
  explicit PageBuffer(uint64_t pages);
  ~PageBuffer();
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;
  std::byte* data() const { return bytes_; }
  void wipe() noexcept;

 private:
  const size_t size_;
  std::byte* const bytes_;
};

}  // namespace medes
