// Where the image's addresses lie now: the registered mappings of one process, kept true through mremap,
// munmap and MADV_DONTNEED. Not thread-safe; the owner locks.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "image/image.h"

namespace medes {

// Addresses [begin, end) of the process hold what the image has at [origin, origin + (end - begin)).
struct Segment {
  uint64_t begin = 0, end = 0, origin = 0;
};

class Segments {
 public:
  void add(uint64_t begin, uint64_t end, uint64_t origin);
  void remove(uint64_t begin, uint64_t end);  // unmapped or given back: the image has no say there any more
  std::vector<Segment> take(uint64_t begin, uint64_t end);  // removes, and returns what was there
  // What the image has at [origin, origin + bytes) is at `address`, wherever it was before.
  void put(uint64_t origin, uint64_t address, uint64_t bytes);

  // The first address of [begin, end) that is of the image.
  std::optional<uint64_t> first_in(uint64_t begin, uint64_t end) const;
  std::optional<uint64_t> origin_of(uint64_t address) const;
  // Where `origin` is now, and how many bytes from there on stay together (0 when it is nowhere).
  struct Place {
    uint64_t address = 0, bytes = 0;
  };
  Place place_of(uint64_t origin) const;
  std::span<const Segment> all() const { return segments_; }
  bool moved() const { return moved_; }

 private:
  std::vector<Segment> segments_;  // ascending begin, disjoint
  bool moved_ = false;             // false: every origin equals its begin, look-ups by origin are binary
};

}  // namespace medes
