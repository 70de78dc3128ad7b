// Image pages out of running processes, in few system calls. Internal to memory/.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/image.h"

namespace medes {

// Collects runs of pages and reads them back to back into a buffer. Used by one thread.
class ProcessReader {
 public:
  // `layout` and `out` outlive this object; `out` has room for all pages that are added.
  ProcessReader(const ImageLayout& layout, std::byte* out) : layout_(layout), out_(out) {}
  // `count` pages of `run`, from image page `first` on.
  void add(const PageRun& run, uint64_t first, uint64_t count);
  // Reads what was added. A page that is not there any more, or not readable, is zeros. Throws process_gone,
  // permission_denied.
  void flush();

 private:
  const ImageLayout& layout_;
  std::byte* out_;
  uint32_t process_ = 0;
  std::vector<AddressRange> runs_;
};

}  // namespace medes
