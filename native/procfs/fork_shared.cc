#include "procfs/fork_shared.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "common/error.h"

namespace medes {
namespace {

struct Shared {
  uint64_t frame = 0;
  uint64_t address = 0;
  uint32_t process = 0;
};

// Those of one process that somebody else maps, too. Their frames are 0 where the kernel does not show any.
void add_shared(pid_t pid, uint32_t process, std::span<const PageSpan> spans, std::vector<Shared>& out) {
  const UniqueFd map = open_pagemap(pid);
  for (const PageSpan& span : spans)
    for_pagemap(map.get(), pid, span.address, span.address + span.count * kPageBytes,
                [&](uint64_t address, const PagemapEntry& e) {
                  if (e.present() && !e.exclusive()) out.push_back({e.frame(), address, process});
                });
}

// How often a frame is mapped, by whomever.
class MapCounts {
 public:
  MapCounts() : fd_(open("/proc/kpagecount", O_RDONLY | O_CLOEXEC)) {}
  // `otherwise` where the kernel does not say.
  uint64_t of(uint64_t frame, uint64_t otherwise) const {
    uint64_t count = 0;
    if (!fd_ || pread(fd_.get(), &count, sizeof count, static_cast<off_t>(frame * sizeof count)) !=
                    static_cast<ssize_t>(sizeof count))
      return otherwise;
    return count;
  }

 private:
  UniqueFd fd_;
};

}  // namespace

ForkShared find_fork_shared(std::span<const pid_t> pids, std::span<const std::vector<PageSpan>> spans,
                            uint32_t fork_sharers_max) {
  ForkShared found;
  found.stay.resize(pids.size());
  std::vector<Shared> shared;
  for (uint32_t i = 0; i < pids.size(); ++i) add_shared(pids[i], i, spans[i], shared);
  if (shared.empty()) return found;
  std::sort(shared.begin(), shared.end(), [](const Shared& a, const Shared& b) {
    return a.frame != b.frame ? a.frame < b.frame : a.process < b.process;
  });
  const MapCounts counts;
  size_t at = 0;
  for (; at < shared.size() && shared[at].frame == 0; ++at) {  // whoever shares it: with 1 it is too many
    if (fork_sharers_max > 1) continue;
    ++found.pages.kept;
    found.stay[shared[at].process].push_back({shared[at].address, shared[at].address + kPageBytes});
  }
  for (size_t end = at; at < shared.size(); at = end) {
    while (end < shared.size() && shared[end].frame == shared[at].frame) ++end;
    const uint64_t sharers = end - at;
    const bool outside = counts.of(shared[at].frame, sharers) > sharers;
    if (!outside && sharers <= fork_sharers_max) {
      found.pages.copied += sharers - 1;
      continue;
    }
    ++(outside ? found.pages.outside : found.pages.kept);
    for (size_t k = at; k < end; ++k)
      found.stay[shared[k].process].push_back({shared[k].address, shared[k].address + kPageBytes});
  }
  for (auto& ranges : found.stay) {
    std::sort(ranges.begin(), ranges.end(),
              [](const AddressRange& a, const AddressRange& b) { return a.begin < b.begin; });
    size_t n = 0;
    for (const AddressRange& r : ranges)
      if (n > 0 && ranges[n - 1].end == r.begin)
        ranges[n - 1].end = r.end;
      else
        ranges[n++] = r;
    ranges.resize(n);
  }
  return found;
}

}  // namespace medes
