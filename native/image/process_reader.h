// Image pages out of running processes, in few system calls. Internal to image/.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "image/foreign_memory.h"
#include "image/image.h"

namespace medes {

// The memories that an image is read from, opened when first asked for: a descriptor stands for the memory
// that it was opened for, whatever has the process's number later. Thread-safe.
class OpenMemories {
 public:
  explicit OpenMemories(std::span<const ProcessLayout> processes);
  // Nothing where it could not be opened, and beyond the first kMost processes: they would be many
  // descriptors.
  const ForeignMemory* of(uint32_t process);

 private:
  static constexpr size_t kMost = 64;
  struct Opened {
    pid_t pid = 0;
    std::once_flag once;
    std::optional<ForeignMemory> memory;
  };
  std::vector<Opened> opened_;
};

// Collects runs of pages and reads them back to back into a buffer. Used by one thread.
class ProcessReader {
 public:
  // All arguments outlive this object; `out` has room for all pages that are added.
  ProcessReader(const ImageLayout& layout, OpenMemories& memories, std::byte* out)
      : layout_(layout), memories_(memories), out_(out) {}
  // `count` pages of `run`, from image page `first` on.
  void add(const PageRun& run, uint64_t first, uint64_t count);
  // Reads what was added. A page that is not there any more, or not readable, is zeros. Throws process_gone,
  // permission_denied.
  void flush();

 private:
  const ImageLayout& layout_;
  OpenMemories& memories_;
  std::byte* out_;
  uint32_t process_ = 0;
  std::vector<AddressRange> runs_;
};

}  // namespace medes
