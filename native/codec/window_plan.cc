#include "codec/window_plan.h"

#include <algorithm>
#include <bit>

#include "common/error.h"
#include "common/thread_pool.h"

namespace medes {
namespace {

constexpr size_t kPagesPerTask = 1024;  // fixed, so that a plan does not depend on the number of threads

struct Candidate {
  uint64_t window = kNoWindow;
  uint32_t samples = 0;  // bit i: explains sample i
};

struct Vote {
  Candidate list[kMaxSamples * kMaxLocations];
  size_t count = 0;

  void add(uint64_t window, uint32_t sample_bit) {
    for (size_t i = 0; i < count; ++i) {
      if (list[i].window == window) {
        list[i].samples |= sample_bit;
        return;
      }
    }
    list[count++] = {window, sample_bit};
  }
};

void collect(Vote& vote, std::span<const uint64_t> places, const uint8_t* positions, uint32_t k) {
  for (uint32_t s = 0; s < k; ++s) {
    for (size_t j = 0; j < kMaxLocations; ++j) {
      const uint64_t place = places[s * kMaxLocations + j];
      if (place == kNoLocation) break;
      const Location l = unpack_location(place);
      const uint64_t at = l.page * kUnitsPerPage + l.position;
      if (at >= positions[s]) vote.add(pack_window(l.slot, at - positions[s]), 1u << s);
    }
  }
}

uint64_t shifted(uint64_t window, int64_t pages) {
  if (window == kNoWindow) return kNoWindow;
  const int64_t unit =
      static_cast<int64_t>(window_unit(window)) + pages * static_cast<int64_t>(kUnitsPerPage);
  return unit < 0 ? kNoWindow : pack_window(window_slot(window), static_cast<uint64_t>(unit));
}

// Chooses into out[kMaxWindows]; returns the number of samples explained.
uint8_t choose(const Vote& vote, uint64_t continuation, uint64_t* out) {
  uint32_t explained = 0;
  size_t chosen = 0;
  int last_gain = 0;
  while (chosen < kMaxWindows) {
    const Candidate* best = nullptr;
    int best_rank = 0;
    for (size_t i = 0; i < vote.count; ++i) {
      const Candidate& c = vote.list[i];
      const int gain = std::popcount(c.samples & ~explained);
      if (gain == 0) continue;
      const bool continues = c.window == continuation;
      const bool same_base = continuation != kNoWindow && window_slot(c.window) == window_slot(continuation);
      const int rank = gain * 4 + (continues ? 2 : 0) + (same_base ? 1 : 0);
      if (rank > best_rank) {
        best_rank = rank;
        best = &c;
      }
    }
    if (best == nullptr) break;
    last_gain = best_rank / 4;
    explained |= best->samples;
    out[chosen++] = best->window;
  }
  const bool has_continuation = std::find(out, out + chosen, continuation) != out + chosen;
  if (continuation != kNoWindow && !has_continuation) {
    if (chosen < kMaxWindows) {
      out[chosen++] = continuation;
    } else if (last_gain == 1) {  // worth more than a window with a single sample
      out[chosen - 1] = continuation;
    }
  }
  return static_cast<uint8_t>(std::popcount(explained));
}

}  // namespace

uint64_t WindowPlan::covered_pages() const { return page_count() - uncovered_pages(4).size(); }

std::vector<uint64_t> WindowPlan::uncovered_pages(uint32_t samples_min) const {
  std::vector<uint64_t> pages;
  for (uint64_t page = 0; page < page_count(); ++page) {
    if (explained_[page] < std::min<uint32_t>(samples_min, samples_[page])) pages.push_back(page);
  }
  return pages;
}

WindowPlan plan_windows(uint64_t page_count, const Fingerprints& fingerprints, const Locations& locations) {
  const uint32_t k = fingerprints.samples_per_page;
  if (fingerprints.page_count != page_count || locations.page_count() != page_count ||
      locations.samples_per_page() != k) {
    throw Error(Code::invalid_argument, "image, fingerprints and locations are not of one image and one k");
  }
  if (locations.base_ids().size() > kMaxBasesPerImage) {
    throw Error(Code::limit_exceeded, "image refers to too many bases");
  }
  WindowPlan plan;
  plan.windows_.assign(page_count * kMaxWindows, kNoWindow);
  plan.explained_.resize(page_count);
  plan.samples_.resize(page_count);
  ThreadPool::shared().parallel_for(page_count, kPagesPerTask, [&](size_t begin, size_t end) {
    uint64_t before = kNoWindow;
    for (size_t page = begin; page < end; ++page) {
      uint64_t* out = plan.windows_.data() + page * kMaxWindows;
      const uint64_t* hashes = fingerprints.hashes.data() + page * k;
      plan.samples_[page] = static_cast<uint8_t>(k - std::count(hashes, hashes + k, 0));
      if (plan.samples_[page] != 0) {
        Vote vote;
        collect(vote, locations.of_page(page), fingerprints.positions.data() + page * k, k);
        plan.explained_[page] = choose(vote, shifted(before, 1), out);
      }
      before = plan.samples_[page] != 0 ? out[0] : shifted(before, 1);
    }
    uint64_t after = kNoWindow;
    for (size_t page = end; page-- > begin;) {
      uint64_t* out = plan.windows_.data() + page * kMaxWindows;
      uint64_t* const free_place = std::find(out, out + kMaxWindows, kNoWindow);
      const uint64_t backward = shifted(after, -1);
      if (plan.samples_[page] != 0 && backward != kNoWindow && free_place != out + kMaxWindows &&
          std::find(out, free_place, backward) == free_place) {
        *free_place = backward;
      }
      after = plan.samples_[page] != 0 ? out[0] : backward;
    }
  });

  // Only bases that some window uses are named: each one costs a pin.
  std::vector<uint32_t> slots(locations.base_ids().size(), ~0u);
  for (uint64_t& w : plan.windows_) {
    if (w == kNoWindow) continue;
    uint32_t& slot = slots[window_slot(w)];
    if (slot == ~0u) {
      slot = static_cast<uint32_t>(plan.base_ids_.size());
      plan.base_ids_.push_back(locations.base_ids()[window_slot(w)]);
    }
    w = pack_window(slot, window_unit(w));
  }
  return plan;
}

}  // namespace medes
