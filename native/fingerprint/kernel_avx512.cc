#include "fingerprint/kernel.h"

#if defined(__AVX512F__)
// GCC 12 warns of its own header's undefined-value idiom (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace medes::fp {
namespace {

struct RangeVectors {
  __m512i all_begin, all_length, begin[kRangesMax], length[kRangesMax];
  uint32_t count;
};

RangeVectors broadcast(const Ranges& r) {
  RangeVectors v;
  v.all_begin = _mm512_set1_epi64(static_cast<long long>(r.all_begin));
  v.all_length = _mm512_set1_epi64(static_cast<long long>(r.all_length));
  v.count = r.count;
  for (uint32_t i = 0; i < r.count; ++i) {
    v.begin[i] = _mm512_set1_epi64(static_cast<long long>(r.begin[i]));
    v.length[i] = _mm512_set1_epi64(static_cast<long long>(r.length[i]));
  }
  return v;
}

inline __m512i normalise(__m512i w, const RangeVectors& r) {
  const __mmask8 hull = _mm512_cmplt_epu64_mask(_mm512_sub_epi64(w, r.all_begin), r.all_length);
  if (hull == 0) return w;
  __mmask8 in = 0;
  for (uint32_t i = 0; i < r.count; ++i) {
    in |= _mm512_cmplt_epu64_mask(_mm512_sub_epi64(w, r.begin[i]), r.length[i]);
  }
  const __m512i mark = _mm512_set1_epi64(static_cast<long long>(kPointerMark));
  // (w & 0xfff) | mark in one ternary: 0xEA = (a & b) | c
  const __m512i pointer = _mm512_ternarylogic_epi64(w, _mm512_set1_epi64(0xfff), mark, 0xEA);
  return _mm512_mask_mov_epi64(w, in, pointer);
}

// Products of the eight words of one vector; even lanes use K0/K1, odd lanes K2/K3.
inline __m512i products(__m512i w, __m512i keys) {
  const __m512i sums = _mm512_add_epi32(w, keys);
  return _mm512_mul_epu32(sums, _mm512_srli_epi64(sums, 32));
}

}  // namespace

size_t keys_avx512(const uint64_t* page, const Ranges& ranges, uint32_t limit, uint64_t* normalised,
                   uint32_t* keys) {
  const RangeVectors r = broadcast(ranges);
  const long long even = static_cast<long long>((uint64_t{kK1} << 32) | kK0);
  const long long odd = static_cast<long long>((uint64_t{kK3} << 32) | kK2);
  const __m512i word_keys = _mm512_setr_epi64(even, odd, even, odd, even, odd, even, odd);
  const __m512i evens = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  const __m512i odds = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
  alignas(64) uint64_t block[kBlocksPerPage + 8];
  for (size_t i = 0; i < kWordsPerPage; i += 16) {
    const __m512i w0 = normalise(_mm512_loadu_si512(page + i), r);
    const __m512i w1 = normalise(_mm512_loadu_si512(page + i + 8), r);
    _mm512_storeu_si512(normalised + i, w0);
    _mm512_storeu_si512(normalised + i + 8, w1);
    const __m512i p0 = products(w0, word_keys), p1 = products(w1, word_keys);
    const __m512i sum =
        _mm512_add_epi64(_mm512_permutex2var_epi64(p0, evens, p1), _mm512_permutex2var_epi64(p0, odds, p1));
    _mm512_store_si512(block + i / 2, sum);
  }
  _mm512_store_si512(block + kBlocksPerPage, _mm512_setzero_si512());

  const __m512i zero_window = _mm512_set1_epi64(static_cast<long long>(kZeroWindow));
  const __m512i mixer = _mm512_set1_epi64(kK4);
  const __m512i limits = _mm512_set1_epi64(limit);
  const __m512i key_bits = _mm512_set1_epi64(0xffffff00);
  __m512i positions = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i step = _mm512_set1_epi64(8);
  size_t count = 0;
  for (size_t p = 0; p < kBlocksPerPage; p += 8) {
    const __m512i s01 = _mm512_xor_si512(_mm512_load_si512(block + p),
                                         _mm512_rol_epi64(_mm512_loadu_si512(block + p + 1), 13));
    const __m512i s =
        _mm512_ternarylogic_epi64(s01, _mm512_rol_epi64(_mm512_loadu_si512(block + p + 2), 29),
                                  _mm512_rol_epi64(_mm512_loadu_si512(block + p + 3), 47), 0x96);
    const __m512i mixed = _mm512_mul_epu32(_mm512_xor_si512(s, _mm512_srli_epi64(s, 29)), mixer);
    const __m512i key = _mm512_ternarylogic_epi64(_mm512_srli_epi64(mixed, 20), key_bits, positions, 0xEA);
    __mmask8 keep = _mm512_cmplt_epu64_mask(key, limits);
    keep = _mm512_mask_cmpneq_epi64_mask(keep, s, zero_window);
    if (p == kBlocksPerPage - 8) keep &= 0x1f;  // windows 248 … 252
    if (keep != 0) {
      const __m512i packed = _mm512_maskz_compress_epi64(keep, key);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + count), _mm512_cvtepi64_epi32(packed));
      count += static_cast<size_t>(__builtin_popcount(keep));
    }
    positions = _mm512_add_epi64(positions, step);
  }
  return count;
}

}  // namespace medes::fp
#endif
