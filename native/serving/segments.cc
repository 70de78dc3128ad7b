#include "serving/segments.h"

#include <algorithm>

namespace medes {
namespace {

auto first_ending_after(const std::vector<Segment>& segments, uint64_t address) {
  return std::upper_bound(segments.begin(), segments.end(), address,
                          [](uint64_t a, const Segment& s) { return a < s.end; });
}

}  // namespace

void Segments::add(uint64_t begin, uint64_t end, uint64_t origin) {
  if (begin >= end) return;  // an empty one would lie among the others without an order
  remove(begin, end);
  auto at = std::lower_bound(segments_.begin(), segments_.end(), begin,
                             [](const Segment& s, uint64_t a) { return s.begin < a; });
  segments_.insert(at, {begin, end, origin});
  moved_ |= begin != origin;
}

void Segments::remove(uint64_t begin, uint64_t end) {
  auto first = first_ending_after(segments_, begin) - segments_.begin();
  std::vector<Segment> rest;
  auto last = static_cast<size_t>(first);
  for (; last < segments_.size() && segments_[last].begin < end; ++last) {
    const Segment& s = segments_[last];
    if (s.begin < begin) rest.push_back({s.begin, begin, s.origin});
    if (s.end > end) rest.push_back({end, s.end, s.origin + (end - s.begin)});
  }
  const auto b = segments_.begin() + first;
  segments_.erase(b, segments_.begin() + static_cast<ptrdiff_t>(last));
  segments_.insert(segments_.begin() + first, rest.begin(), rest.end());
}

std::vector<Segment> Segments::take(uint64_t begin, uint64_t end) {
  std::vector<Segment> taken;
  for (auto s = first_ending_after(segments_, begin); s != segments_.end() && s->begin < end; ++s) {
    const uint64_t b = std::max(s->begin, begin), e = std::min(s->end, end);
    taken.push_back({b, e, s->origin + (b - s->begin)});
  }
  remove(begin, end);
  return taken;
}

void Segments::put(uint64_t origin, uint64_t address, uint64_t bytes) {
  const std::vector<Segment> before = segments_;
  for (const auto& s : before) {
    const uint64_t b = std::max(s.origin, origin), e = std::min(s.origin + (s.end - s.begin), origin + bytes);
    if (b < e) remove(s.begin + (b - s.origin), s.begin + (e - s.origin));
  }
  add(address, address + bytes, origin);
}

std::optional<uint64_t> Segments::first_in(uint64_t begin, uint64_t end) const {
  const auto s = first_ending_after(segments_, begin);
  if (s == segments_.end() || s->begin >= end) return std::nullopt;
  return std::max(s->begin, begin);
}

std::optional<uint64_t> Segments::origin_of(uint64_t address) const {
  const auto s = first_ending_after(segments_, address);
  if (s == segments_.end() || s->begin > address) return std::nullopt;
  return s->origin + (address - s->begin);
}

Segments::Place Segments::place_of(uint64_t origin) const {
  auto inside = [origin](const Segment& s) { return origin - s.origin < s.end - s.begin; };
  auto s = moved_ ? std::find_if(segments_.begin(), segments_.end(), inside)
                  : first_ending_after(segments_, origin);
  if (s == segments_.end() || !inside(*s)) return {};
  const uint64_t address = s->begin + (origin - s->origin);
  return {address, s->end - address};
}

}  // namespace medes
