// Which base windows each page of an image may be encoded against. A window is 4096 bytes of a base's stored
// pages at any multiple of 16 bytes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/base_view.h"
#include "codec/fingerprint.h"
#include "common/limits.h"
#include "registry/locations.h"

namespace medes {

inline constexpr uint64_t kUnitsPerPage = kPageBytes / kWindowStep;
inline constexpr uint64_t kNoWindow = ~0ull;
inline constexpr int kWindowUnitBits = 48;

// slot << 48 | offset in 16-byte units.
constexpr uint64_t pack_window(uint32_t slot, uint64_t unit) {
  return uint64_t{slot} << kWindowUnitBits | unit;
}
constexpr uint32_t window_slot(uint64_t w) { return static_cast<uint32_t>(w >> kWindowUnitBits); }
constexpr uint64_t window_unit(uint64_t w) { return w & ((1ull << kWindowUnitBits) - 1); }
// Whether it is one, and all of it lies in its base.
inline bool window_fits(uint64_t window, std::span<const BaseView> views) {
  if (window == kNoWindow) return false;
  const uint64_t bytes = views[window_slot(window)].bytes.size();
  return bytes >= kPageBytes && window_unit(window) * kWindowStep <= bytes - kPageBytes;
}

class WindowPlan {
 public:
  uint64_t page_count() const { return explained_.size(); }
  const std::vector<uint64_t>& base_ids() const { return base_ids_; }  // slot → base
  // Up to kMaxWindows candidates, best first, kNoWindow where there are fewer. Offsets may run past a base's
  // end (its length is not known here): the encoder leaves those out.
  std::span<const uint64_t> windows(uint64_t page) const {
    return {windows_.data() + page * kMaxWindows, kMaxWindows};
  }
  uint64_t covered_pages() const;
  // Pages of which the windows explain fewer than samples_min samples, and not all they have: what a new base
  // should add. All-zero pages have no samples and are never in the list.
  std::vector<uint64_t> uncovered_pages(uint32_t samples_min) const;

 private:
  friend WindowPlan plan_windows(uint64_t page_count, const Fingerprints& fingerprints,
                                 const Locations& locations);
  friend WindowPlan plan_with_reuse(const WindowPlan& plan, const class Reuse& reuse);
  std::vector<uint64_t> base_ids_;
  std::vector<uint64_t> windows_;   // page_count * kMaxWindows
  std::vector<uint8_t> explained_;  // samples that the chosen windows explain
  std::vector<uint8_t> samples_;    // samples the page has
};

// Votes per page for up to kMaxWindows windows, greedily by how many samples each explains; ties go to the
// page before's window plus one page, then to its base. Free places take the page before's window plus one
// page and the page after's minus one. Throws invalid_argument when the three arguments are not of one image
// and one k.
WindowPlan plan_windows(uint64_t page_count, const Fingerprints& fingerprints, const Locations& locations);

}  // namespace medes
