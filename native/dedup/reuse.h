// A second dedup of the same sandbox: pages that still have the bytes they had at the first are taken over as
// they were encoded, with no fingerprint, look-up or encoding of their own.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "codec/encoded_image.h"
#include "codec/window_plan.h"
#include "image/image.h"

namespace medes {

// Which pages of an image an earlier encoded image of the same processes has, told by address and tag.
// A page of a live image may change after it was looked at: who takes one over looks again (still_same), and
// what is taken over is verified like all the rest.
class Reuse {
 public:
  // Knows of no page yet. `before` is the earlier image's layout.
  Reuse(const ImageLayout& now, const ImageLayout& before, std::shared_ptr<const EncodedImage> encoded);

  // Finds out about `count` pages from `first` on, whose bytes are `pages`; threads may do so side by side,
  // each page once. Pages that were stored without a base (compressed, raw) are not taken over: there may be
  // one now.
  void look(uint64_t first, uint64_t count, const std::byte* pages);

  static constexpr uint64_t kNoPage = ImageLayout::kNoPage;
  uint64_t page_count() const { return old_pages_.size(); }
  uint64_t reused() const { return reused_.load(std::memory_order_relaxed); }
  // Page of the earlier image, kNoPage when there is none with the same bytes.
  uint64_t old_page(uint64_t page) const { return old_pages_[page]; }
  // Whether the page is taken over and still has the bytes that it was found with.
  bool still_same(uint64_t page, const std::byte* bytes) const {
    return old_pages_[page] != kNoPage && encoded_->matches(old_pages_[page], bytes);
  }
  const EncodedImage& encoded() const { return *encoded_; }

 private:
  const ImageLayout& now_;
  const ImageLayout& before_;
  const std::shared_ptr<const EncodedImage> encoded_;
  std::vector<uint32_t> processes_;  // of `before`, for each of `now`
  std::vector<uint64_t> old_pages_;
  std::atomic<uint64_t> reused_{0};
};

// The plan with the earlier image's bases in their old slots, the plan's others behind them, and the earlier
// windows for pages that are taken over. Throws invalid_argument (a plan of another image), limit_exceeded,
// corrupt.
WindowPlan plan_with_reuse(const WindowPlan& plan, const Reuse& reuse);

}  // namespace medes
