#include "serving/huge_pages.h"

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "common/error.h"
#include "common/unique_fd.h"
#include "procfs/pagemap.h"
#include "procfs/proc.h"

namespace medes {
namespace {

constexpr uint64_t kHugeBytes = 2u << 20;
constexpr int kMadvCollapse = 25;  // Linux 6.1; the C library's headers here are older

// No page may be missing: the kernel would fill it, and the sandbox would hold more than it had.
bool whole(const Pagemap& pagemap, uint64_t address) {
  std::vector<PageSpan> present;
  pagemap.private_pages(address, address + kHugeBytes, present);
  return present.size() == 1 && present[0].count * kPageBytes == kHugeBytes;
}

}  // namespace

std::vector<AddressRange> huge_ranges(std::span<const PageSpan> huge, std::span<const AddressRange> ranges) {
  std::vector<AddressRange> out;
  auto range = ranges.begin();
  for (const auto& s : huge) {
    const uint64_t span_end = s.address + s.count * kPageBytes;
    while (range != ranges.end() && range->end <= s.address) ++range;
    for (auto r = range; r != ranges.end() && r->begin < span_end; ++r) {
      const uint64_t begin = (std::max(s.address, r->begin) + kHugeBytes - 1) / kHugeBytes * kHugeBytes;
      const uint64_t end = std::min(span_end, r->end) / kHugeBytes * kHugeBytes;
      if (begin < end) out.push_back({begin, end});
    }
  }
  return out;
}

uint64_t join_huge_pages(const HugePages& huge) {
  if (huge.ranges.empty()) return 0;
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, huge.pid, 0)));
  if (process.get() < 0) return 0;
  uint64_t joined = 0;
  try {
    if (process_start_time(huge.pid) != huge.start_time_ticks) return 0;
    const Pagemap pagemap(huge.pid);
    for (const auto& r : huge.ranges)
      for (uint64_t at = r.begin; at < r.end; at += kHugeBytes) {
        if (!whole(pagemap, at)) continue;
        const iovec range{reinterpret_cast<void*>(at), kHugeBytes};
        if (syscall(SYS_process_madvise, process.get(), &range, 1, kMadvCollapse, 0) ==
            static_cast<long>(kHugeBytes))
          joined += kHugeBytes;
      }
  } catch (const Error&) {
    // The process has exited, or may not be looked at any more: what is joined is joined.
  }
  return joined;
}

}  // namespace medes
