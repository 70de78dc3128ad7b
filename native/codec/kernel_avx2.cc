#include "codec/kernel.h"

#if defined(__AVX2__)
#include <immintrin.h>

namespace medes::fp {
namespace {

inline __m256i set64(uint64_t v) { return _mm256_set1_epi64x(static_cast<long long>(v)); }

// a < b unsigned, as a lane mask; AVX2 compares signed only, so `b_flipped` has its top bit flipped
// beforehand.
inline __m256i below(__m256i a, __m256i b_flipped) {
  return _mm256_cmpgt_epi64(b_flipped, _mm256_xor_si256(a, set64(1ull << 63)));
}

struct RangeVectors {
  __m256i begin[kRangesMax], length[kRangesMax];
  uint32_t count;
};

RangeVectors broadcast(const Ranges& r) {
  RangeVectors v;
  v.count = r.count;
  for (uint32_t i = 0; i < r.count; ++i) {
    v.begin[i] = set64(r.begin[i]);
    v.length[i] = set64(r.length[i] ^ (1ull << 63));
  }
  return v;
}

inline __m256i normalise(__m256i w, const RangeVectors& r) {
  __m256i in = _mm256_setzero_si256();
  for (uint32_t i = 0; i < r.count; ++i) {
    in = _mm256_or_si256(in, below(_mm256_sub_epi64(w, r.begin[i]), r.length[i]));
  }
  const __m256i pointer = _mm256_or_si256(_mm256_and_si256(w, set64(0xfff)), set64(kPointerMark));
  return _mm256_blendv_epi8(w, pointer, in);
}

inline __m256i products(__m256i w, __m256i keys) {
  const __m256i sums = _mm256_add_epi32(w, keys);
  return _mm256_mul_epu32(sums, _mm256_srli_epi64(sums, 32));
}

template <int n>
inline __m256i rotate(__m256i v) {
  return _mm256_or_si256(_mm256_slli_epi32(v, n), _mm256_srli_epi32(v, 32 - n));
}

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// The sums of the products of word pairs, folded: low halves of four lanes, in the order 0, 2, 1, 3.
inline __m256i blocks(const uint64_t* page, const RangeVectors& r, __m256i word_keys) {
  const __m256i p0 = products(normalise(load(page), r), word_keys);
  const __m256i p1 = products(normalise(load(page + 4), r), word_keys);
  const __m256i sum = _mm256_add_epi64(_mm256_unpacklo_epi64(p0, p1), _mm256_unpackhi_epi64(p0, p1));
  return _mm256_xor_si256(sum, _mm256_srli_epi64(sum, 32));
}

}  // namespace

size_t sample_avx2(const uint64_t* page, const Ranges& ranges, size_t k, Samples& out) {
  const RangeVectors r = broadcast(ranges);
  const long long even = static_cast<long long>((uint64_t{kK1} << 32) | kK0);
  const long long odd = static_cast<long long>((uint64_t{kK3} << 32) | kK2);
  const __m256i word_keys = _mm256_setr_epi64x(even, odd, even, odd);
  uint32_t block[kBlocksPerPage + 8] = {};
  for (size_t b = 0; b < kBlocksPerPage; b += 8) {
    const __m256 x = _mm256_castsi256_ps(blocks(page + 2 * b, r, word_keys));
    const __m256 y = _mm256_castsi256_ps(blocks(page + 2 * b + 8, r, word_keys));
    // Low halves of both: x0 x2 y0 y2 | x1 x3 y1 y3, put in order.
    const __m256i mixed = _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(block + b), _mm256_permutevar8x32_epi32(mixed, order));
  }
  uint32_t keys[kBlocksPerPage];
  __m256i positions = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (size_t p = 0; p < kBlocksPerPage; p += 8) {
    const __m256i s =
        _mm256_xor_si256(_mm256_xor_si256(load(block + p), rotate<7>(load(block + p + 1))),
                         _mm256_xor_si256(rotate<15>(load(block + p + 2)), rotate<23>(load(block + p + 3))));
    const __m256i mixed = _mm256_mullo_epi32(s, _mm256_set1_epi32(static_cast<int>(kK4)));
    const __m256i key = _mm256_or_si256(_mm256_and_si256(mixed, _mm256_set1_epi32(~0xff)), positions);
    const __m256i zero = _mm256_cmpeq_epi32(s, _mm256_set1_epi32(static_cast<int>(kZeroWindow)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + p), _mm256_or_si256(key, zero));
    positions = _mm256_add_epi32(positions, _mm256_set1_epi32(8));
  }
  const size_t size = select_keys(keys, kWindowsPerPage, k, out.best);
  copy_windows(page, ranges, size, out);
  return size;
}

}  // namespace medes::fp
#endif
