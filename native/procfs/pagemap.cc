#include "procfs/pagemap.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <memory>

#include "common/error.h"
#include "procfs/proc.h"

namespace medes {
namespace {

// Kernel interface of Linux 6.7; the C library's headers here are older.
struct ScanRegion {
  uint64_t start, end, categories;
};
struct ScanArgument {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(ScanArgument) == 96);
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArgument);
constexpr uint64_t kFile = 1 << 2, kPresent = 1 << 3, kSwapped = 1 << 4, kZero = 1 << 5, kHuge = 1 << 6,
                   kGuard = 1 << 8;

enum Support : int { unknown, with_guard, without_guard, absent };
std::atomic<int> g_support{unknown};

// Ascending: a table that changes while the kernel walks it may be reported twice.
void append(std::vector<PageSpan>& out, uint64_t begin, uint64_t end) {
  if (!out.empty()) begin = std::max(begin, out.back().address + out.back().count * kPageBytes);
  if (begin >= end) return;
  if (!out.empty() && out.back().address + out.back().count * kPageBytes == begin)
    out.back().count += (end - begin) / kPageBytes;
  else
    out.push_back({begin, (end - begin) / kPageBytes});
}

// The frame behind a read fault on untouched anonymous memory; 0 where frames are not shown to us.
uint64_t zero_frame() {
  static const uint64_t frame = [] {
    void* p = mmap(nullptr, kPageBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return uint64_t{0};
    (void)*static_cast<volatile const char*>(p);
    PagemapEntry entry;
    const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
      const auto at = static_cast<off_t>(reinterpret_cast<uintptr_t>(p) / kPageBytes * sizeof entry);
      if (pread(fd, &entry, sizeof entry, at) != sizeof entry) entry = {};
      close(fd);
    }
    munmap(p, kPageBytes);
    return entry.frame();
  }();
  return frame;
}

}  // namespace

UniqueFd open_pagemap(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(live_thread(pid)) + "/pagemap";
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd) return fd;
  const int err = errno;
  const std::string object = "pid " + std::to_string(pid);
  if (err == ENOENT || err == ESRCH) throw Error(Code::process_gone, "the process does not exist", object);
  throw errno_error(err, "cannot open " + path, object, "the agent needs CAP_SYS_PTRACE over the sandbox");
}

size_t read_pagemap(int fd, pid_t pid, uint64_t address, std::span<PagemapEntry> entries) {
  const auto at = static_cast<off_t>(address / kPageBytes * sizeof(PagemapEntry));
  ssize_t got;
  do {
    got = pread(fd, entries.data(), entries.size_bytes(), at);
  } while (got < 0 && errno == EINTR);
  if (got < 0) throw errno_error(errno, "cannot read the page map", "pid " + std::to_string(pid));
  const size_t whole = static_cast<size_t>(got) / sizeof(PagemapEntry);
  if (whole == 0) throw Error(Code::process_gone, "the process has exited", "pid " + std::to_string(pid));
  return whole;
}

Pagemap::Pagemap(pid_t pid) : pid_(pid), fd_(open_pagemap(pid)) {}

void Pagemap::private_pages(uint64_t begin, uint64_t end, std::vector<PageSpan>& out,
                            std::vector<PageSpan>* huge) const {
  if (!scan(begin, end, Wanted::own, out, huge)) read_entries(begin, end, true, out);
}

void Pagemap::present_pages(uint64_t begin, uint64_t end, std::vector<PageSpan>& out) const {
  if (!scan(begin, end, Wanted::present, out)) read_entries(begin, end, false, out);
}

void Pagemap::guard_pages(uint64_t begin, uint64_t end, std::vector<PageSpan>& out) const {
  (void)scan(begin, end, Wanted::guard, out);
}

bool Pagemap::scan(uint64_t begin, uint64_t end, Wanted wanted, std::vector<PageSpan>& out,
                   std::vector<PageSpan>* huge) const {
  int support = g_support.load(std::memory_order_relaxed);
  if (support == absent) return false;
  constexpr size_t kRegions = 1024;
  const auto regions = std::make_unique_for_overwrite<ScanRegion[]>(kRegions);
  while (begin < end) {
    if (wanted == Wanted::guard && support == without_guard) return false;
    ScanArgument arg{};
    arg.size = sizeof arg;
    arg.start = begin, arg.end = end;
    arg.vec = reinterpret_cast<uint64_t>(regions.get()), arg.vec_len = kRegions;
    uint64_t unwanted = wanted == Wanted::present ? 0 : kFile | kZero;
    if (support != without_guard) unwanted |= kGuard;
    arg.category_inverted = unwanted;
    arg.category_mask = unwanted;
    arg.category_anyof_mask = kPresent | kSwapped;
    arg.return_mask = kPresent | kSwapped | (huge != nullptr ? kHuge : 0);
    if (wanted == Wanted::guard) {
      arg.category_inverted = arg.category_anyof_mask = 0;
      arg.category_mask = arg.return_mask = kGuard;
    }
    const int n = ioctl(fd_.get(), kPagemapScan, &arg);
    if (n < 0) {
      const int err = errno;
      if (err == EINTR) continue;
      if (err == EINVAL && support == unknown) {
        support = without_guard;  // guard pages became a category in 6.15
        continue;
      }
      if (err == ENOTTY || (err == EINVAL && support == without_guard)) {
        g_support.store(absent, std::memory_order_relaxed);
        return false;
      }
      throw errno_error(err, "cannot scan the page map", "pid " + std::to_string(pid_));
    }
    if (support == unknown) support = with_guard;
    g_support.store(support, std::memory_order_relaxed);
    for (int i = 0; i < n; ++i) {
      append(out, regions[i].start, regions[i].end);
      if (huge != nullptr && (regions[i].categories & kHuge) != 0)
        append(*huge, regions[i].start, regions[i].end);
    }
    if (arg.walk_end <= begin) break;
    begin = arg.walk_end;
  }
  return true;
}

void Pagemap::read_entries(uint64_t begin, uint64_t end, bool private_only,
                           std::vector<PageSpan>& out) const {
  const uint64_t zero = zero_frame();
  for_pagemap(fd_.get(), pid_, begin, end, [&](uint64_t address, const PagemapEntry& e) {
    if (!(e.present() || e.swapped()) || e.guard()) return;
    const bool is_zero = e.present() && zero != 0 && e.frame() == zero;
    if (private_only && (e.of_file() || is_zero)) return;
    append(out, address, address + kPageBytes);
  });
}

}  // namespace medes
