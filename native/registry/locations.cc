#include "registry/locations.h"

#include <algorithm>

#include "common/error.h"

namespace medes {
namespace {

constexpr size_t kMaxSlots = 0xffff;  // the slot 0xffff would collide with "none"
constexpr uint32_t kMaxPosition = (kPageBytes - kChunkBytes) / kWindowStep;

}  // namespace

Locations::Locations(uint64_t page_count, uint32_t samples_per_page)
    : page_count_(page_count), samples_per_page_(samples_per_page) {
  if (samples_per_page < 1 || samples_per_page > kMaxSamples) {
    throw Error(Code::invalid_argument, "samples per page must be 1 to 16", std::to_string(samples_per_page));
  }
  if (page_count > kMaxImagePages) throw Error(Code::limit_exceeded, "image has too many pages");
  packed_.assign(page_count * samples_per_page * kMaxLocations, kNoLocation);
}

uint32_t Locations::add_base(uint64_t base_id) {
  const auto known = std::find(base_ids_.begin(), base_ids_.end(), base_id);
  if (known != base_ids_.end()) return static_cast<uint32_t>(known - base_ids_.begin());
  if (base_ids_.size() >= kMaxSlots) throw Error(Code::limit_exceeded, "locations name too many bases");
  base_ids_.push_back(base_id);
  return static_cast<uint32_t>(base_ids_.size() - 1);
}

void Locations::merge(std::span<const uint64_t> packed, std::span<const uint64_t> base_ids,
                      std::span<const uint64_t> pages) {
  const size_t page_places = size_t{samples_per_page_} * kMaxLocations;
  if (packed.size() != pages.size() * page_places)
    throw Error(Code::invalid_argument, "locations are of other pages or of another k");
  if (base_ids.size() > kMaxSlots) throw Error(Code::limit_exceeded, "locations name too many bases");
  for (uint64_t page : pages)
    if (page >= page_count_) throw Error(Code::invalid_argument, "locations are of another image");
  std::vector<uint32_t> slots(base_ids.size(), ~0u);  // entered on first use: unused bases stay out
  for (size_t i = 0; i < packed.size(); i += kMaxLocations) {
    uint64_t* const places = packed_.data() + pages[i / page_places] * page_places + i % page_places;
    for (size_t j = i; j < i + kMaxLocations; ++j) {
      if (packed[j] == kNoLocation) continue;
      const Location l = unpack_location(packed[j]);
      if (l.slot >= base_ids.size() || l.position > kMaxPosition || l.page >= kMaxBasePages) continue;
      uint64_t* own = places;
      uint64_t* const end = places + kMaxLocations;
      while (own != end && *own != kNoLocation) ++own;
      if (own == end) break;
      uint32_t& slot = slots[l.slot];
      if (slot == ~0u) slot = add_base(base_ids[l.slot]);
      const uint64_t value = pack_location(slot, l.page, l.position);
      if (std::find(places, own, value) == own) *own = value;
    }
  }
}

uint32_t Locations::located(uint64_t page) const {
  const auto places = of_page(page);
  uint32_t n = 0;
  for (size_t i = 0; i < places.size(); i += kMaxLocations) n += places[i] != kNoLocation;
  return n;
}

std::vector<uint64_t> Locations::open_pages(std::span<const uint64_t> hashes, uint32_t samples_min) const {
  const uint32_t k = samples_per_page_;
  if (hashes.size() != page_count_ * k) throw Error(Code::invalid_argument, "hashes are of another image");
  std::vector<uint64_t> out;
  for (uint64_t page = 0; page < page_count_; ++page) {
    const auto own = hashes.subspan(page * k, k);
    const auto samples = static_cast<uint32_t>(k - std::count(own.begin(), own.end(), 0));
    if (located(page) < std::min(samples_min, samples)) out.push_back(page);
  }
  return out;
}

}  // namespace medes
