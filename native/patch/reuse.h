// A second dedup of the same sandbox: pages that still have the bytes they had at the first are taken over as
// they were encoded, with no fingerprint, look-up or encoding of their own.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "fingerprint/fingerprint.h"
#include "memory/image.h"
#include "patch/encoded_image.h"
#include "patch/window_plan.h"

namespace medes {

// Which pages of an image an earlier encoded image of the same processes has, told by address and checksum.
// What is taken over is verified like all the rest. Immutable; const calls are safe from any thread.
class Reuse {
 public:
  // `before` and `encoded` are the earlier one's and outlive this object. Reads all of the image once. Pages
  // that were stored without a base (compressed, raw) are not taken over: there may be one now.
  Reuse(const MemoryImage& image, const ImageLayout& before, const EncodedImage& encoded);

  static constexpr uint64_t kNoPage = ImageLayout::kNoPage;
  uint64_t page_count() const { return old_pages_.size(); }
  uint64_t reused() const { return reused_; }
  // Page of the earlier image, kNoPage when there is none with the same bytes.
  uint64_t old_page(uint64_t page) const { return old_pages_[page]; }
  const EncodedImage& encoded() const { return encoded_; }

 private:
  const EncodedImage& encoded_;
  std::vector<uint64_t> old_pages_;
  uint64_t reused_ = 0;
};

// As fingerprint_image, but pages that are taken over have no samples. Throws invalid_argument.
Fingerprints fingerprint_changed(const MemoryImage& image, uint32_t samples_per_page, const Reuse& reuse);

// The plan with the earlier image's bases in their old slots, the plan's others behind them, and the earlier
// windows for pages that are taken over. Throws invalid_argument (a plan of another image), limit_exceeded,
// corrupt.
WindowPlan plan_with_reuse(const WindowPlan& plan, const Reuse& reuse);

}  // namespace medes
