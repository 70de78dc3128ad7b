// The reference kernels: other levels must agree bit for bit, or a patch made on one node would not decode on
// another.
#include "codec/predict_kernels.h"
#include "codec/slides.h"

namespace medes::kernels {

void predict_scalar(const Predictor& predictor, const uint64_t* v, uint64_t* p, uint64_t lines) {
  for (size_t i = 0; i < 512; ++i) {
    if ((lines >> (i / 8) & 1) == 0) continue;
    uint64_t w = v[i];
    if (w - predictor.hull_begin <= predictor.hull_last) {
      for (uint32_t segment = 0; segment < predictor.segments; ++segment) {
        const uint64_t at = (v[i] >> kGranuleBits) - predictor.begin[segment];
        if (at >= predictor.length[segment]) continue;
        w += static_cast<uint64_t>(predictor.dense[predictor.offset[segment] + at]);
        break;
      }
    }
    p[i] = w;
  }
}

size_t diff_scalar(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words) {
  size_t different = 0;
  for (size_t line = 0; line < words / 8; ++line) {
    unsigned mask = 0;
    for (unsigned j = 0; j < 8; ++j) mask |= unsigned{a[line * 8 + j] != b[line * 8 + j]} << j;
    masks[line] = static_cast<uint8_t>(mask);
    different += static_cast<size_t>(__builtin_popcount(mask));
  }
  return different;
}

size_t weigh_scalar(const Predictor& predictor, const uint64_t* page, const uint64_t* window,
                    uint8_t* counts) {
  size_t sum = 0;
  for (size_t line = 0; line < 64; ++line) {
    unsigned count = 0;
    for (size_t i = line * 8; i < line * 8 + 8; ++i) {
      const bool moved = ((page[i] ^ window[i]) & kSlideBits) == 0 &&
                         window[i] - predictor.hull_begin <= predictor.hull_last;
      count += page[i] != window[i] && !moved;
    }
    counts[line] = static_cast<uint8_t>(count);
    sum += count;
  }
  return sum;
}

}  // namespace medes::kernels
