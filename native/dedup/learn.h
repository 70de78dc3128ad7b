// What an image teaches before it is encoded: how far pointers slid from each base, and which words no base
// predicts but many pages have. Internal to dedup/.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "codec/base_view.h"
#include "codec/page_encoder.h"
#include "codec/slides.h"
#include "codec/window_plan.h"
#include "codec/word_coder.h"
#include "dedup/reuse.h"
#include "image/image.h"

namespace medes {

inline constexpr size_t kLearnStride = 8;  // only every eighth page is looked at (and its windows with it)

// One table a slot, from the best windows of the pages. Pages that are taken over were coded by the tables of
// their time, which come first.
std::vector<SlideTable> learn_slides(const MemoryImage& image, const WindowPlan& plan,
                                     std::span<const BaseView> views, const Reuse* reuse);

// The words that stand most often where the best window predicts something else.
Dictionary learn_dictionary(const MemoryImage& image, const WindowPlan& plan, std::span<const BaseView> views,
                            std::span<const BaseWords> bases, SimdLevel simd);

inline bool is_taken_over(const Reuse* reuse, uint64_t page) {
  return reuse != nullptr && reuse->old_page(page) != Reuse::kNoPage;
}

}  // namespace medes
