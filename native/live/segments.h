// Where the image's addresses lie now: the registered mappings of one process, kept true through mremap,
// munmap and MADV_DONTNEED. Not thread-safe; the owner locks.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memory/image.h"

namespace medes {

// Addresses [begin, end) of the process hold what the image has at [origin, origin + (end - begin)).
struct Segment {
  uint64_t begin = 0, end = 0, origin = 0;
};

class Segments {
 public:
  void add(uint64_t begin, uint64_t end, uint64_t origin);
  void remove(uint64_t begin, uint64_t end);  // unmapped or given back: the image has no say there any more
  void move(uint64_t from, uint64_t to, uint64_t length);  // mremap; what was at `to` is replaced

  bool overlaps(uint64_t begin, uint64_t end) const;
  std::optional<uint64_t> origin_of(uint64_t address) const;
  // Where `origin` is now, and how many bytes from there on stay together (0 when it is nowhere).
  struct Place {
    uint64_t address = 0, bytes = 0;
  };
  Place place_of(uint64_t origin) const;
  // Image addresses behind [begin, end), before a removal.
  std::vector<AddressRange> origins_in(uint64_t begin, uint64_t end) const;
  std::span<const Segment> all() const { return segments_; }
  bool moved() const { return moved_; }

 private:
  std::vector<Segment> segments_;  // ascending begin, disjoint
  bool moved_ = false;             // false: every origin equals its begin, look-ups by origin are binary
};

}  // namespace medes
