// Mappings that the program has given back all of what was missing in: the kernel alone serves them again,
// and what the program does with them is nothing that it has to wait for us with.
//
// A mapping goes whole or not at all. Where a part of one is registered the kernel keeps two mappings, and
// refuses mremap over both (EFAULT), which the program could not explain.
#include <algorithm>
#include <array>

#include "common/fault_point.h"
#include "procfs/proc.h"
#include "serving/process_memory.h"

namespace medes {

bool ProcessMemory::is_missing_at(uint64_t address) const {
  const auto origin = segments_.origin_of(address);
  const uint64_t page = origin ? layout_.find(process_, *origin) : ImageLayout::kNoPage;
  return page != ImageLayout::kNoPage && state(page) == PageState::evicted;
}

bool ProcessMemory::nothing_missing_in(uint64_t begin, uint64_t end) const {
  const auto all = segments_.all();
  return std::none_of(all.begin(), all.end(), [&](const Segment& s) {
    const uint64_t b = std::max(s.begin, begin), e = std::min(s.end, end);
    return b < e && any_missing(s.origin + (b - s.begin), e - b);
  });
}

// Addresses in registered mappings of which the changes took something, if they may hold nothing that is
// missing: most programs give back little of much, which shows in what lies beside it.
std::vector<uint64_t> ProcessMemory::left_by(std::span<const MappingChange> changes) const {
  std::vector<uint64_t> out;
  for (const auto& c : changes) {
    const uint64_t before = c.begin - kPageBytes;
    if (c.kind == MappingChange::Kind::move || is_missing_at(before) || is_missing_at(c.end)) continue;
    if (c.kind == MappingChange::Kind::discard && segments_.origin_of(c.begin)) out.push_back(c.begin);
    if (c.kind == MappingChange::Kind::unmap && segments_.origin_of(before)) out.push_back(before);
    if (c.kind == MappingChange::Kind::unmap && segments_.origin_of(c.end)) out.push_back(c.end);
  }
  return out;
}

// The changes are applied and committed, and no thread is known to be in a call. One may begin all the same,
// and move missing memory to where we let go: it then waits for us to read its event, and finds everything
// registered as it was. False then: there is an event to read.
bool ProcessMemory::let_go(std::span<const MappingChange> changes) {
  if (is_forked_child()) return true;
  const std::vector<uint64_t> touched = left_by(changes);
  if (touched.empty()) return true;
  std::vector<Vma> vmas;
  try {
    vmas = read_maps(pid_);
  } catch (const Error&) {
    return true;  // it is gone, as the next call finds out
  }
  for (size_t i = 0; i < vmas.size(); ++i) {
    const Vma& v = vmas[i];
    const bool meant =
        std::any_of(touched.begin(), touched.end(), [&](uint64_t a) { return a >= v.begin && a < v.end; });
    if (!meant || v.kind == VmaKind::stack || !nothing_missing_in(v.begin, v.end)) continue;
    // As it may grow while we look, what lies free behind it goes with it.
    const uint64_t end = i + 1 < vmas.size() ? std::min(vmas[i + 1].begin, kMaxUserAddress) : v.end;
    const UffdResult result = uffd_.look(v.begin);
    if (result == UffdResult::again || uffd_.changing()) return false;
    if (result != UffdResult::ok) continue;
    // What came back is the program's own from here on: a reclaim, of the next agent too, leaves it.
    for (const Segment& g : segments_.all())
      if (const uint64_t b = std::max(g.begin, v.begin), e = std::min(g.end, v.end); b < e)
        forget(std::array{AddressRange{g.origin + (b - g.begin), g.origin + (e - g.begin)}});
    if (uffd_.unregister(v.begin, end) != 0) continue;
    fault_point("restore.let_go");
    if (uffd_.changing()) {
      (void)uffd_.register_missing(v.begin, end);
      return false;
    }
    segments_.remove(v.begin, v.end);
  }
  return true;
}

}  // namespace medes
