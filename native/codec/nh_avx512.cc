#if defined(__AVX512F__)

#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"  // the intrinsics' own "undefined" operands (GCC 12)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "codec/nh_kernels.h"
#include "common/limits.h"

namespace medes::kernels {

namespace {

inline __m512i add_products(__m512i sum, __m512i words, __m512i key) {
  const __m512i mixed = _mm512_add_epi32(words, key);
  return _mm512_add_epi64(sum, _mm512_mul_epu32(mixed, _mm512_srli_epi64(mixed, 32)));
}

// (The intrinsic that sums up does so in signed words, of which overflow is undefined.)
inline uint64_t total(__m512i sum) {
  alignas(64) uint64_t words[8];
  _mm512_store_si512(words, sum);
  uint64_t all = 0;
  for (const uint64_t word : words) all += word;
  return all;
}

}  // namespace

void nh_avx512(const std::byte* page, const std::byte* key, uint64_t sums[2]) noexcept {
  __m512i first[2] = {}, second[2] = {};
  __m512i k = _mm512_load_si512(key);
  for (size_t at = 0; at < kPageBytes; at += 128) {
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; ++i) {
      const __m512i words = _mm512_loadu_si512(page + at + i * 64);
      const __m512i next = _mm512_load_si512(key + at + 64 + i * 64);
      first[i] = add_products(first[i], words, k);
      second[i] = add_products(second[i], words, next);
      k = next;
    }
  }
  sums[0] = total(_mm512_add_epi64(first[0], first[1]));
  sums[1] = total(_mm512_add_epi64(second[0], second[1]));
}

}  // namespace medes::kernels

#endif
