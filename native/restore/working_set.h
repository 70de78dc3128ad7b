// Page identities that survive address randomisation: (which mapping, how far into it).
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "common/bytes.h"
#include "image/image.h"

namespace medes {

// Working set: pages in fault order, by identity that survives ASLR (docs/live-driver.md).
struct WorkingSetEntry {
  uint64_t region_key = 0;   // hash of process rank, VMA kind, path, size class and ordinal among its like
  uint64_t page_offset = 0;  // pages from the region's begin
};
static_assert(sizeof(WorkingSetEntry) == 16);

inline constexpr size_t kMaxWorkingSetPages = 1u << 18;

// The regions of one image by key, for translation both ways.
class RegionIndex {
 public:
  explicit RegionIndex(const ImageLayout& layout);  // `layout` outlives it

  WorkingSetEntry entry_of(uint64_t page) const;
  // Image pages of the entries that this image has, in their order, each once; unknown ones are left out.
  std::vector<uint64_t> pages_of(std::span<const WorkingSetEntry> entries) const;

 private:
  struct Region {
    uint64_t begin = 0, end = 0, key = 0;
  };
  const ImageLayout& layout_;
  std::vector<std::vector<Region>> regions_;  // by process, ascending
  struct Place {
    uint32_t process;
    uint64_t begin, end;
  };
  std::unordered_map<uint64_t, Place> by_key_;
};

std::vector<WorkingSetEntry> unpack_working_set(Bytes packed);  // throws invalid_argument, limit_exceeded

}  // namespace medes
