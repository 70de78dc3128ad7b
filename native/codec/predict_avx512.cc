#include "codec/predict_kernels.h"
#include "codec/slides.h"

#if defined(__AVX512F__)
// GCC 12 warns of its own header's undefined-value idiom (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace medes::kernels {

namespace {

inline __m512i all(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }

// The slides of eight words of the hull. Scalar loads: a gather instruction takes three times as long where
// it is mended in microcode.
inline __m512i slides_of(const Predictor& predictor, __m512i w) {
  const __m512i granule = _mm512_srli_epi64(w, kGranuleBits);
  __m512i at = _mm512_setzero_si512();
  for (uint32_t s = 0; s < predictor.segments; ++s) {
    const __m512i d = _mm512_sub_epi64(granule, all(predictor.begin[s]));
    const __mmask8 here = _mm512_cmplt_epu64_mask(d, all(predictor.length[s]));
    at = _mm512_mask_add_epi64(at, here, d, all(predictor.offset[s]));
  }
  alignas(64) uint64_t index[8];
  _mm512_store_si512(index, at);
  const int64_t* const dense = predictor.dense;
  return _mm512_setr_epi64(dense[index[0]], dense[index[1]], dense[index[2]], dense[index[3]],
                           dense[index[4]], dense[index[5]], dense[index[6]], dense[index[7]]);
}

}  // namespace

// Pointers stand a few to a line: they are moved together, looked up eight at a time, and added where they
// came from.
void predict_avx512(const Predictor& predictor, const uint64_t* v, uint64_t* p, uint64_t lines) {
  const __m512i hull_begin = all(predictor.hull_begin), hull_last = all(predictor.hull_last);
  uint64_t pointers[512 + 8];
  uint8_t masks[64];
  uint64_t found = 0;
  size_t count = 0;
  for (; lines != 0; lines = _blsr_u64(lines)) {
    const auto line = static_cast<size_t>(__builtin_ctzll(lines));
    const __m512i w = _mm512_loadu_si512(v + line * 8);
    const __mmask8 in = _mm512_cmple_epu64_mask(_mm512_sub_epi64(w, hull_begin), hull_last);
    _mm512_storeu_si512(p + line * 8, w);
    _mm512_storeu_si512(pointers + count, _mm512_maskz_compress_epi64(in, w));
    masks[line] = in;
    found |= uint64_t{in != 0} << line;
    count += static_cast<size_t>(__builtin_popcount(in));
  }
  _mm512_storeu_si512(pointers + count, _mm512_setzero_si512());
  for (size_t i = 0; i < count; i += 8) {
    _mm512_storeu_si512(pointers + i, slides_of(predictor, _mm512_loadu_si512(pointers + i)));
  }
  const uint64_t* from = pointers;
  for (; found != 0; found = _blsr_u64(found)) {
    const auto line = static_cast<size_t>(__builtin_ctzll(found));
    const __m512i slide = _mm512_maskz_expand_epi64(masks[line], _mm512_loadu_si512(from));
    _mm512_storeu_si512(p + line * 8, _mm512_add_epi64(_mm512_loadu_si512(p + line * 8), slide));
    from += __builtin_popcount(masks[line]);
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

size_t weigh_avx512(const Predictor& predictor, const uint64_t* page, const uint64_t* window,
                    uint8_t* counts) {
  const __m512i hull_begin = all(predictor.hull_begin), hull_last = all(predictor.hull_last);
  const __m512i low = all(kSlideBits);
  uint8_t masks[64];
  for (size_t line = 0; line < 64; ++line) {
    const __m512i w = _mm512_loadu_si512(page + line * 8), v = _mm512_loadu_si512(window + line * 8);
    const __mmask8 differ = _mm512_cmpneq_epi64_mask(w, v);
    const __mmask8 out = _mm512_cmpgt_epu64_mask(_mm512_sub_epi64(v, hull_begin), hull_last);
    masks[line] = differ & (out | _mm512_test_epi64_mask(_mm512_xor_si512(w, v), low));
  }
  // Bits per byte, by a table of nibbles.
  const __m512i nibbles = _mm512_set1_epi8(15), bits = _mm512_loadu_si512(masks);
  const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i high = _mm512_and_si512(_mm512_srli_epi16(bits, 4), nibbles);
  const __m512i sums = _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(bits, nibbles)),
                                       _mm512_shuffle_epi8(table, high));
  _mm512_storeu_si512(counts, sums);
  return static_cast<size_t>(_mm512_reduce_add_epi64(_mm512_sad_epu8(sums, _mm512_setzero_si512())));
}

}  // namespace medes::kernels
#endif
