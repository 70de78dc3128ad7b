#include "codec/predict_kernels.h"
#include "codec/slides.h"

#if defined(__AVX2__)
#include <immintrin.h>

namespace medes::kernels {

void predict_avx2(const Predictor& predictor, const uint64_t* v, uint64_t* p, uint64_t lines) {
  const __m256i sign = _mm256_set1_epi64x(static_cast<long long>(1ull << 63));
  const __m256i hull_begin = _mm256_set1_epi64x(static_cast<long long>(predictor.hull_begin));
  const __m256i hull_last = _mm256_set1_epi64x(static_cast<long long>(predictor.hull_last ^ (1ull << 63)));
  const int64_t* const dense = predictor.dense;
  for (size_t i = 0; i < 512; i += 4) {
    if ((lines >> (i / 8) & 1) == 0) continue;
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + i));
    const __m256i out =
        _mm256_cmpgt_epi64(_mm256_xor_si256(_mm256_sub_epi64(w, hull_begin), sign), hull_last);
    __m256i sum = w;
    if (_mm256_movemask_epi8(out) != -1) {
      const __m256i granule = _mm256_srli_epi64(w, kGranuleBits);
      __m256i at = _mm256_setzero_si256();
      for (uint32_t s = 0; s < predictor.segments; ++s) {
        const __m256i d =
            _mm256_sub_epi64(granule, _mm256_set1_epi64x(static_cast<long long>(predictor.begin[s])));
        const __m256i length = _mm256_set1_epi64x(static_cast<long long>(predictor.length[s] ^ (1ull << 63)));
        const __m256i here = _mm256_cmpgt_epi64(length, _mm256_xor_si256(d, sign));
        const __m256i place =
            _mm256_add_epi64(d, _mm256_set1_epi64x(static_cast<long long>(predictor.offset[s])));
        at = _mm256_blendv_epi8(at, place, here);
      }
      alignas(32) uint64_t index[4];
      _mm256_store_si256(reinterpret_cast<__m256i*>(index), at);
      sum = _mm256_add_epi64(
          w, _mm256_setr_epi64x(dense[index[0]], dense[index[1]], dense[index[2]], dense[index[3]]));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + i), sum);
  }
}

size_t diff_avx2(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words) {
  size_t different = 0;
  for (size_t i = 0; i < words; i += 8) {
    const auto* x = reinterpret_cast<const __m256i*>(a + i);
    const auto* y = reinterpret_cast<const __m256i*>(b + i);
    const __m256i low = _mm256_cmpeq_epi64(_mm256_loadu_si256(x), _mm256_loadu_si256(y));
    const __m256i high = _mm256_cmpeq_epi64(_mm256_loadu_si256(x + 1), _mm256_loadu_si256(y + 1));
    const unsigned equal = static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(low))) |
                           static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(high))) << 4;
    const unsigned mask = ~equal & 0xff;
    masks[i / 8] = static_cast<uint8_t>(mask);
    different += static_cast<size_t>(__builtin_popcount(mask));
  }
  return different;
}

size_t weigh_avx2(const Predictor& predictor, const uint64_t* page, const uint64_t* window, uint8_t* counts) {
  const __m256i sign = _mm256_set1_epi64x(static_cast<long long>(1ull << 63));
  const __m256i hull_begin = _mm256_set1_epi64x(static_cast<long long>(predictor.hull_begin));
  const __m256i hull_last = _mm256_set1_epi64x(static_cast<long long>(predictor.hull_last ^ (1ull << 63)));
  const __m256i low = _mm256_set1_epi64x(kSlideBits);
  size_t sum = 0;
  const auto explained = [&](const uint64_t* a, const uint64_t* b) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    const __m256i out =
        _mm256_cmpgt_epi64(_mm256_xor_si256(_mm256_sub_epi64(v, hull_begin), sign), hull_last);
    const __m256i alike =
        _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_xor_si256(w, v), low), _mm256_setzero_si256());
    const __m256i same = _mm256_or_si256(_mm256_cmpeq_epi64(w, v), _mm256_andnot_si256(out, alike));
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(same)));
  };
  for (size_t line = 0; line < 64; ++line) {
    const unsigned same = explained(page + line * 8, window + line * 8) |
                          explained(page + line * 8 + 4, window + line * 8 + 4) << 4;
    const auto count = static_cast<unsigned>(8 - __builtin_popcount(same));
    counts[line] = static_cast<uint8_t>(count);
    sum += count;
  }
  return sum;
}

}  // namespace medes::kernels
#endif
