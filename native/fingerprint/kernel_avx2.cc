#include "fingerprint/kernel.h"

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
  __m256i all_begin, all_length, begin[kRangesMax], length[kRangesMax];
  uint32_t count;
};

RangeVectors broadcast(const Ranges& r) {
  RangeVectors v;
  v.all_begin = set64(r.all_begin);
  v.all_length = set64(r.all_length ^ (1ull << 63));
  v.count = r.count;
  for (uint32_t i = 0; i < r.count; ++i) {
    v.begin[i] = set64(r.begin[i]);
    v.length[i] = set64(r.length[i] ^ (1ull << 63));
  }
  return v;
}

inline __m256i normalise(__m256i w, const RangeVectors& r) {
  const __m256i hull = below(_mm256_sub_epi64(w, r.all_begin), r.all_length);
  if (_mm256_testz_si256(hull, hull)) return w;
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
  return _mm256_or_si256(_mm256_slli_epi64(v, n), _mm256_srli_epi64(v, 64 - n));
}

inline __m256i load(const uint64_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store(uint64_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

}  // namespace

size_t keys_avx2(const uint64_t* page, const Ranges& ranges, uint32_t limit, uint64_t* normalised,
                 uint32_t* keys) {
  const RangeVectors r = broadcast(ranges);
  const long long even = static_cast<long long>((uint64_t{kK1} << 32) | kK0);
  const long long odd = static_cast<long long>((uint64_t{kK3} << 32) | kK2);
  const __m256i word_keys = _mm256_setr_epi64x(even, odd, even, odd);
  alignas(32) uint64_t block[kBlocksPerPage + 8] = {};
  for (size_t i = 0; i < kWordsPerPage; i += 8) {
    const __m256i w0 = normalise(load(page + i), r), w1 = normalise(load(page + i + 4), r);
    store(normalised + i, w0);
    store(normalised + i + 4, w1);
    const __m256i p0 = products(w0, word_keys), p1 = products(w1, word_keys);
    // unpack pairs lanes as 0,2,1,3: put them back in order
    const __m256i sum = _mm256_add_epi64(_mm256_unpacklo_epi64(p0, p1), _mm256_unpackhi_epi64(p0, p1));
    store(block + i / 2, _mm256_permute4x64_epi64(sum, 0xD8));
  }

  const __m256i limit_flipped = set64(uint64_t{limit} ^ (1ull << 63));
  __m256i positions = _mm256_setr_epi64x(0, 1, 2, 3);
  size_t count = 0;
  for (size_t p = 0; p < kBlocksPerPage; p += 4) {
    const __m256i s =
        _mm256_xor_si256(_mm256_xor_si256(load(block + p), rotate<13>(load(block + p + 1))),
                         _mm256_xor_si256(rotate<29>(load(block + p + 2)), rotate<47>(load(block + p + 3))));
    const __m256i mixed = _mm256_mul_epu32(_mm256_xor_si256(s, _mm256_srli_epi64(s, 29)), set64(kK4));
    const __m256i key =
        _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi64(mixed, 20), set64(0xffffff00)), positions);
    const __m256i keep =
        _mm256_andnot_si256(_mm256_cmpeq_epi64(s, set64(kZeroWindow)), below(key, limit_flipped));
    unsigned mask = static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(keep)));
    if (p == kBlocksPerPage - 4) mask &= 1;  // window 252
    if (mask != 0) {
      alignas(32) uint64_t lanes[4];
      _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), key);
      for (; mask != 0; mask &= mask - 1) keys[count++] = static_cast<uint32_t>(lanes[__builtin_ctz(mask)]);
    }
    positions = _mm256_add_epi64(positions, set64(4));
  }
  return count;
}

}  // namespace medes::fp
#endif
