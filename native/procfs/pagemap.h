// Which private pages of a process are in memory.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "common/unique_fd.h"
#include "image/image.h"

namespace medes {

// `count` pages from `address`.
struct PageSpan {
  uint64_t address = 0, count = 0;
};

// /proc/<pid>/pagemap, for reading. Throws process_gone, permission_denied.
UniqueFd open_pagemap(pid_t pid);

// What the page map says of one page (Documentation/admin-guide/mm/pagemap.rst).
struct PagemapEntry {
  uint64_t bits = 0;
  bool guard() const { return (bits >> 58 & 1) != 0; }
  bool exclusive() const { return (bits >> 56 & 1) != 0; }  // nobody else maps it
  bool of_file() const { return (bits >> 61 & 1) != 0; }    // or of shared anonymous memory
  bool swapped() const { return (bits >> 62 & 1) != 0; }
  bool present() const { return (bits >> 63 & 1) != 0; }
  uint64_t frame() const { return bits & ((1ull << 55) - 1); }  // 0 without CAP_SYS_ADMIN
};
static_assert(sizeof(PagemapEntry) == 8);

// Entries from `address` on: how many were read, at least one. Throws process_gone.
size_t read_pagemap(int fd, pid_t pid, uint64_t address, std::span<PagemapEntry> entries);

// Calls f(address, entry) for each page of [begin, end).
template <typename F>
void for_pagemap(int fd, pid_t pid, uint64_t begin, uint64_t end, F&& f) {
  constexpr size_t kEntries = 4096;
  std::vector<PagemapEntry> entries(std::min<uint64_t>(kEntries, (end - begin) / kPageBytes));
  while (begin < end) {
    const size_t want = std::min<uint64_t>(entries.size(), (end - begin) / kPageBytes);
    const size_t got = read_pagemap(fd, pid, begin, std::span(entries).first(want));
    for (size_t i = 0; i < got; ++i, begin += kPageBytes) f(begin, entries[i]);
  }
}

// Reads /proc/<pid>/pagemap: through PAGEMAP_SCAN where the kernel has it (6.7), which skips what is not
// mapped, else entry by entry. One object per process, used by one thread.
class Pagemap {
 public:
  explicit Pagemap(pid_t pid);  // throws process_gone, permission_denied

  // Appends the pages of [begin, end) that hold memory of the process's own (present or swapped, not of a
  // file, not the shared zero page, not a guard), ascending, neighbours merged.
  // `huge` gets those of them that lie in huge pages, where the kernel has PAGEMAP_SCAN.
  void private_pages(uint64_t begin, uint64_t end, std::vector<PageSpan>& out,
                     std::vector<PageSpan>* huge = nullptr) const;
  // Same walk but every page that is mapped at all, whatever is behind it (the zero page too).
  void present_pages(uint64_t begin, uint64_t end, std::vector<PageSpan>& out) const;
  // Appends guard regions (MADV_GUARD_INSTALL); nothing where the kernel does not show them (before 6.15).
  void guard_pages(uint64_t begin, uint64_t end, std::vector<PageSpan>& out) const;

 private:
  enum class Wanted : uint8_t { present, own, guard };
  bool scan(uint64_t begin, uint64_t end, Wanted wanted, std::vector<PageSpan>& out,
            std::vector<PageSpan>* huge = nullptr) const;
  void read_entries(uint64_t begin, uint64_t end, bool private_only, std::vector<PageSpan>& out) const;
  pid_t pid_;
  UniqueFd fd_;
};

}  // namespace medes
