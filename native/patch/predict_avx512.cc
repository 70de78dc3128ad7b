#include "patch/predict_kernels.h"
#include "patch/slides.h"

#if defined(__AVX512F__)
// GCC 12 warns of its own header's undefined-value idiom (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace medes::kernels {

void predict_avx512(const Predictor& predictor, const uint64_t* v, uint64_t* p, size_t words) {
  const __m512i hull_begin = _mm512_set1_epi64(static_cast<long long>(predictor.hull_begin));
  const __m512i hull_last = _mm512_set1_epi64(static_cast<long long>(predictor.hull_last));
  const int64_t* const dense = predictor.dense;
  for (size_t i = 0; i < words; i += 8) {
    const __m512i w = _mm512_loadu_si512(v + i);
    const __mmask8 in = _mm512_cmple_epu64_mask(_mm512_sub_epi64(w, hull_begin), hull_last);
    if (in == 0) {
      _mm512_storeu_si512(p + i, w);
      continue;
    }
    const __m512i granule = _mm512_srli_epi64(w, kGranuleBits);
    __m512i at = _mm512_setzero_si512();
    for (uint32_t s = 0; s < predictor.segments; ++s) {
      const __m512i d =
          _mm512_sub_epi64(granule, _mm512_set1_epi64(static_cast<long long>(predictor.begin[s])));
      const __mmask8 here =
          _mm512_cmplt_epu64_mask(d, _mm512_set1_epi64(static_cast<long long>(predictor.length[s])));
      at = _mm512_mask_add_epi64(at, here, d, _mm512_set1_epi64(static_cast<long long>(predictor.offset[s])));
    }
    alignas(64) uint64_t index[8];
    _mm512_store_si512(index, at);
    const __m512i slide =
        _mm512_setr_epi64(dense[index[0]], dense[index[1]], dense[index[2]], dense[index[3]], dense[index[4]],
                          dense[index[5]], dense[index[6]], dense[index[7]]);
    _mm512_storeu_si512(p + i, _mm512_add_epi64(w, slide));
  }
}

size_t diff_avx512(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words) {
  size_t different = 0;
  for (size_t i = 0; i < words; i += 8) {
    const __mmask8 mask = _mm512_cmpneq_epi64_mask(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i));
    masks[i / 8] = mask;
    different += static_cast<size_t>(__builtin_popcount(mask));
  }
  return different;
}

}  // namespace medes::kernels
#endif
