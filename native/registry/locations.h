// Where base memory holds the windows of an image's fingerprints: per sample up to two packed locations.
// The packing is the wire's (controller.proto): base_slot(16) << 48 | page(32) << 16 | position(8) << 8, all
// ones = none. Slots index base_ids() of the same object.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/limits.h"

namespace medes {

inline constexpr uint64_t kNoLocation = ~0ull;

struct Location {
  uint32_t slot = 0;
  uint64_t page = 0;
  uint32_t position = 0;  // units of 16 bytes
};

constexpr uint64_t pack_location(uint32_t slot, uint64_t page, uint32_t position) {
  return uint64_t{slot} << 48 | page << 16 | uint64_t{position} << 8;
}
constexpr Location unpack_location(uint64_t v) {
  return {static_cast<uint32_t>(v >> 48), (v >> 16) & 0xffffffff, static_cast<uint32_t>((v >> 8) & 0xff)};
}

// Not thread-safe. Throws invalid_argument on sizes that do not fit, limit_exceeded beyond 65535 bases.
class Locations {
 public:
  Locations(uint64_t page_count, uint32_t samples_per_page);

  uint64_t page_count() const { return page_count_; }
  uint32_t samples_per_page() const { return samples_per_page_; }
  std::span<const uint64_t> of_page(uint64_t page) const {
    const size_t n = size_t{samples_per_page_} * kMaxLocations;
    return {packed_.data() + page * n, n};
  }
  std::span<const uint64_t> packed() const { return packed_; }
  std::span<uint64_t> packed() { return packed_; }
  const std::vector<uint64_t>& base_ids() const { return base_ids_; }

  uint32_t add_base(uint64_t base_id);  // slot of a new or known base
  // Fills free places with another answer's locations, of which the i-th row is of page pages[i]; what is
  // there stays. Malformed locations (slot or position out of range) are left out: the registry is a hint.
  void merge(std::span<const uint64_t> packed, std::span<const uint64_t> base_ids,
             std::span<const uint64_t> pages);
  // Samples of `page` that have a location.
  uint32_t located(uint64_t page) const;
  // Pages with fewer located samples than samples_min, and than they have: they want more locations. `hashes`
  // are the image's.
  std::vector<uint64_t> open_pages(std::span<const uint64_t> hashes, uint32_t samples_min) const;

 private:
  uint64_t page_count_;
  uint32_t samples_per_page_;
  std::vector<uint64_t> packed_;
  std::vector<uint64_t> base_ids_;
};

}  // namespace medes
