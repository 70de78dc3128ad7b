#include "serving/mapping_change.h"

#include <algorithm>
#include <optional>

namespace medes {
namespace {

using Kind = MappingChange::Kind;

}  // namespace

Applied apply_together(Segments& segments, std::span<const MappingChange> changes) {
  Applied out;
  for (const auto& c : changes) {
    if (c.kind != Kind::move) continue;
    for (const auto& s : segments.take(c.begin, c.end))
      out.moved.push_back({s.begin - c.begin + c.to, s.end - c.begin + c.to, s.origin});
  }
  const auto drop = [&](uint64_t begin, uint64_t end, bool keep_place) {
    for (const auto& s : segments.take(begin, end)) {
      out.unwanted.push_back({s.origin, s.origin + (s.end - s.begin)});
      if (keep_place) segments.add(s.begin, s.end, s.origin);
    }
  };
  for (const auto& c : changes)
    if (c.kind != Kind::move) drop(c.begin, c.end, c.kind == Kind::discard);
  for (const auto& c : changes)
    if (c.kind == Kind::move) drop(c.to, c.to + (c.end - c.begin), false);
  for (const auto& s : out.moved) segments.add(s.begin, s.end, s.origin);
  return out;
}

bool independent(std::span<const MappingChange> changes) {
  const auto meet = [](uint64_t begin, uint64_t end, uint64_t other, uint64_t other_end) {
    return begin < other_end && other < end;
  };
  for (size_t j = 1; j < changes.size(); ++j)
    for (size_t i = 0; i < j; ++i) {
      const MappingChange &a = changes[i], &b = changes[j];
      const uint64_t a_to_end = a.to + (a.end - a.begin), b_to_end = b.to + (b.end - b.begin);
      const bool a_moves = a.kind == Kind::move, b_moves = b.kind == Kind::move;
      const bool source_goes = a_moves && b.kind == Kind::unmap && a.begin <= b.begin && b.end <= a.end;
      const bool target_was_freed = b_moves && a.kind == Kind::unmap && b.to <= a.begin && a.end <= b_to_end;
      if (!source_goes && meet(a.begin, a.end, b.begin, b.end)) return false;
      if (a_moves && meet(a.to, a_to_end, b.begin, b.end)) return false;
      if (b_moves && !target_was_freed && meet(a.begin, a.end, b.to, b_to_end)) return false;
      if (a_moves && b_moves && meet(a.to, a_to_end, b.to, b_to_end)) return false;
    }
  return true;
}

// A change made room at the first address of the image that it speaks of: where that is gone from the child,
// the child was born with it. Where it is there again, the same holds if one that the child was born with
// moved something there.
std::vector<MappingChange> inherited(const Segments& before, std::span<const MappingChange> changes,
                                     const std::function<bool(uint64_t)>& registered) {
  std::vector<std::optional<uint64_t>> first;  // such addresses
  std::vector<bool> is_inherited(changes.size());
  std::vector<size_t> found;  // whose consequences are yet to be drawn
  for (size_t i = 0; i < changes.size(); ++i) {
    // A page given back is one that nobody may count on while the call runs; and where nothing of the image
    // was, it makes no difference.
    first.push_back(changes[i].kind == Kind::discard ? std::nullopt
                                                     : before.first_in(changes[i].begin, changes[i].end));
    is_inherited[i] = !first[i] || !registered(*first[i]);
    if (is_inherited[i]) found.push_back(i);
  }
  while (!found.empty()) {
    const MappingChange& m = changes[found.back()];
    found.pop_back();
    if (m.kind != Kind::move) continue;
    for (size_t i = 0; i < changes.size(); ++i) {
      if (is_inherited[i] || m.to > *first[i] || *first[i] - m.to >= m.end - m.begin) continue;
      is_inherited[i] = true;
      found.push_back(i);
    }
  }
  std::vector<MappingChange> out;
  for (size_t i = 0; i < changes.size(); ++i)
    if (is_inherited[i]) out.push_back(changes[i]);
  return out;
}

}  // namespace medes
