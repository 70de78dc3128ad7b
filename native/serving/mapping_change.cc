#include "live/mapping_change.h"

#include <algorithm>
#include <optional>

namespace medes {
namespace {

using Kind = MappingChange::Kind;

enum class Verdict : uint8_t { unknown, asked, inherited, later };

// Decides on one change, first on those that made room for it to speak of the same addresses again.
class Decisions {
 public:
  Decisions(const Segments& before, std::span<const MappingChange> changes,
            const std::function<bool(uint64_t)>& registered)
      : before_(before), changes_(changes), registered_(registered), verdicts_(changes.size()) {}

  bool inherited(size_t i) {
    if (verdicts_[i] == Verdict::unknown) {
      verdicts_[i] = Verdict::asked;
      verdicts_[i] = decide(changes_[i]) ? Verdict::inherited : Verdict::later;
    }
    return verdicts_[i] == Verdict::inherited;
  }

 private:
  bool decide(const MappingChange& c) {
    // A page given back is one that nobody may count on while the call runs.
    if (c.kind == Kind::discard) return true;
    const auto address = before_.first_in(c.begin, c.end);
    if (!address) return true;  // nothing of the image was there: it makes no difference
    // Something that the child has where this change took something away came after it.
    for (size_t k = 0; k < changes_.size(); ++k) {
      const MappingChange& m = changes_[k];
      if (m.kind != Kind::move || m.to > *address || *address - m.to >= m.end - m.begin) continue;
      if (verdicts_[k] != Verdict::asked && inherited(k)) return true;
    }
    return !registered_(*address);
  }

  const Segments& before_;
  const std::span<const MappingChange> changes_;
  const std::function<bool(uint64_t)>& registered_;
  std::vector<Verdict> verdicts_;
};

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

std::vector<MappingChange> inherited(const Segments& before, std::span<const MappingChange> changes,
                                     const std::function<bool(uint64_t)>& registered) {
  Decisions decisions(before, changes, registered);
  std::vector<MappingChange> out;
  for (size_t i = 0; i < changes.size(); ++i)
    if (decisions.inherited(i)) out.push_back(changes[i]);
  return out;
}

}  // namespace medes
