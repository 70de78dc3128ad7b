#include "dedup/window_fetcher.h"

#include <algorithm>
#include <chrono>

#include "common/error.h"

namespace medes {
namespace {

constexpr auto kTimeout = std::chrono::seconds(30);
constexpr uint64_t kAheadPages = 1024;  // of the image, in one batch: up to 4 MiB of windows or a little more

}  // namespace

WindowFetcher::WindowFetcher(const WindowPlan& plan, BaseSet& bases)
    : plan_(plan), bases_(bases), views_(plan.base_ids().size()), remote_slots_(views_.size(), -1) {
  for (size_t i = 0; i < views_.size(); ++i) {
    try {
      const uint32_t slot = bases.slot_of(plan.base_ids()[i]);
      views_[i] = bases.view(slot);
      if (bases.local(slot)) continue;
      remote_slots_[i] = slot;
      all_local_ = false;
    } catch (const Error& e) {
      if (e.code != Code::not_found) throw;
    }
  }
}

WindowFetcher::~WindowFetcher() {
  stop_ = true;
  if (ahead_.joinable()) ahead_.join();
}

// Of every stride-th page from `first` up to `end`.
Code WindowFetcher::ensure(uint64_t first, uint64_t end, uint64_t stride) const {
  std::vector<Extent> extents;
  for (uint64_t page = first; page < end; page += stride) {
    for (uint64_t w : plan_.windows(page)) {
      if (!window_fits(w, views_) || remote_slots_[window_slot(w)] < 0) continue;
      extents.push_back({static_cast<uint32_t>(remote_slots_[window_slot(w)]),
                         static_cast<uint32_t>(kPageBytes), window_unit(w) * kWindowStep});
    }
  }
  return extents.empty() ? Code::ok : bases_.ensure(extents, kTimeout);
}

void WindowFetcher::fetch(uint64_t first, uint64_t count, uint64_t stride) const {
  if (all_local_) return;
  const Code code = ensure(first, first + count, stride);
  if (code != Code::ok) throw Error(code, "base pages could not be read");
}

void WindowFetcher::run_ahead() {
  if (all_local_) return;
  ahead_ = std::thread([this] {
    for (uint64_t at = 0; at < plan_.page_count() && !stop_; at += kAheadPages)
      // A failure shows again, and counts, where the pages are needed.
      if (ensure(at, std::min(plan_.page_count(), at + kAheadPages), 1) != Code::ok) return;
  });
}

}  // namespace medes
