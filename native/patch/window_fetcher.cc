#include "patch/window_fetcher.h"

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

void WindowFetcher::add_page(uint64_t page, std::vector<Extent>& extents) const {
  for (uint64_t w : plan_.windows(page)) {
    if (!window_fits(w, views_) || remote_slots_[window_slot(w)] < 0) continue;
    extents.push_back({static_cast<uint32_t>(remote_slots_[window_slot(w)]),
                       static_cast<uint32_t>(kPageBytes), window_unit(w) * kWindowStep});
  }
}

Code WindowFetcher::ensure(const std::vector<Extent>& extents) const {
  return extents.empty() ? Code::ok : bases_.ensure(extents, kTimeout);
}

void WindowFetcher::fetch(uint64_t first, uint64_t count) const {
  if (all_local_) return;
  std::vector<Extent> extents;
  for (uint64_t page = first; page < first + count; ++page) add_page(page, extents);
  if (const Code code = ensure(extents); code != Code::ok) throw Error(code, "base pages could not be read");
}

void WindowFetcher::fetch_sample(uint64_t stride) const {
  if (all_local_) return;
  std::vector<Extent> extents;
  for (uint64_t page = 0; page < plan_.page_count(); page += stride) add_page(page, extents);
  if (const Code code = ensure(extents); code != Code::ok) throw Error(code, "base pages could not be read");
}

void WindowFetcher::run_ahead() {
  if (all_local_) return;
  ahead_ = std::thread([this] {
    std::vector<Extent> extents;
    for (uint64_t at = 0; at < plan_.page_count() && !stop_; at += kAheadPages) {
      extents.clear();
      const uint64_t end = std::min(plan_.page_count(), at + kAheadPages);
      for (uint64_t page = at; page < end; ++page) add_page(page, extents);
      if (ensure(extents) != Code::ok) return;  // shows again, and counts, where it is needed
    }
  });
}

}  // namespace medes
