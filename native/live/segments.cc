#include "live/segments.h"

#include <algorithm>

namespace medes {
namespace {

auto first_ending_after(const std::vector<Segment>& segments, uint64_t address) {
  return std::upper_bound(segments.begin(), segments.end(), address,
                          [](uint64_t a, const Segment& s) { return a < s.end; });
}

}  // namespace

void Segments::add(uint64_t begin, uint64_t end, uint64_t origin) {
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

void Segments::move(uint64_t from, uint64_t to, uint64_t length) {
  std::vector<Segment> moving;
  for (const auto& s : segments_) {
    const uint64_t b = std::max(s.begin, from), e = std::min(s.end, from + length);
    if (b < e) moving.push_back({to + (b - from), to + (e - from), s.origin + (b - s.begin)});
  }
  remove(from, from + length);
  remove(to, to + length);
  for (const auto& s : moving) add(s.begin, s.end, s.origin);
}

bool Segments::overlaps(uint64_t begin, uint64_t end) const {
  const auto s = first_ending_after(segments_, begin);
  return s != segments_.end() && s->begin < end;
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

std::vector<AddressRange> Segments::origins_in(uint64_t begin, uint64_t end) const {
  std::vector<AddressRange> out;
  for (auto s = first_ending_after(segments_, begin); s != segments_.end() && s->begin < end; ++s) {
    const uint64_t b = std::max(s->begin, begin), e = std::min(s->end, end);
    out.push_back({s->origin + (b - s->begin), s->origin + (e - s->begin)});
  }
  return out;
}

}  // namespace medes
