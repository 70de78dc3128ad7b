#if defined(__AVX2__)

#include <immintrin.h>

#include "codec/nh_kernels.h"
#include "common/limits.h"

namespace medes::kernels {

namespace {

inline __m256i load(const std::byte* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

inline __m256i add_products(__m256i sum, __m256i words, __m256i key) {
  const __m256i mixed = _mm256_add_epi32(words, key);
  return _mm256_add_epi64(sum, _mm256_mul_epu32(mixed, _mm256_srli_epi64(mixed, 32)));
}

inline uint64_t total(__m256i sum) {
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half))));
}

}  // namespace

void nh_avx2(const std::byte* page, const std::byte* key, uint64_t sums[2]) noexcept {
  __m256i first[2] = {}, second[2] = {};
  __m256i k[2] = {load(key), load(key + 32)};
  for (size_t at = 0; at < kPageBytes; at += 64) {
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; ++i) {
      const __m256i words = load(page + at + i * 32), next = load(key + at + 64 + i * 32);
      first[i] = add_products(first[i], words, k[i]);
      second[i] = add_products(second[i], words, next);
      k[i] = next;
    }
  }
  sums[0] = total(_mm256_add_epi64(first[0], first[1]));
  sums[1] = total(_mm256_add_epi64(second[0], second[1]));
}

}  // namespace medes::kernels

#endif
