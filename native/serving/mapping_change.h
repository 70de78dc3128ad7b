// What a set of calls that overlapped in time did to a process's mappings. Which of them the kernel did first
// cannot be told from their userfaultfd events, and need not be: none of them had returned when the last one
// began, so each speaks of memory as it lay before the whole set, and the program cannot know an order
// either.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "serving/segments.h"

namespace medes {

struct MappingChange {
  enum class Kind : uint8_t { move, unmap, discard } kind = Kind::unmap;
  uint64_t begin = 0, end = 0;
  uint64_t to = 0;  // of a move
};

struct Applied {
  // Image addresses that the program has no use for any more: they were unmapped or given back, or lay where
  // something else was moved to.
  std::vector<AddressRange> unwanted;
  std::vector<Segment> moved;  // where they are now
};

Applied apply_together(Segments& segments, std::span<const MappingChange> changes);

// No two of them, in the order read, speak of the same addresses, so that their order makes no difference. A
// move comes with others of its own call: its target is freed before, its source after.
bool independent(std::span<const MappingChange> changes);

// Those of the changes that a child forked by one more call of the set was born with. `registered` asks the
// child's own page tables whether an address that was registered before the set still is.
std::vector<MappingChange> inherited(const Segments& before, std::span<const MappingChange> changes,
                                     const std::function<bool(uint64_t)>& registered);

}  // namespace medes
