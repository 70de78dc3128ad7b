#include "common/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace medes {

#if defined(__x86_64__)
uint64_t checksum64_avx2(const void* data, size_t length) noexcept;
uint64_t checksum64_avx512(const void* data, size_t length) noexcept;
Digest128 digest128_avx2(const void* data, size_t length, uint64_t seed) noexcept;
Digest128 digest128_avx512(const void* data, size_t length, uint64_t seed) noexcept;
#endif

namespace {

struct Functions {
  uint64_t (*checksum)(const void*, size_t) noexcept;
  Digest128 (*digest)(const void*, size_t, uint64_t) noexcept;
};

uint64_t checksum64_plain(const void* data, size_t length) noexcept { return XXH3_64bits(data, length); }
Digest128 digest128_plain(const void* data, size_t length, uint64_t seed) noexcept {
  const XXH128_hash_t h = XXH3_128bits_withSeed(data, length, seed);
  return {h.low64, h.high64};
}

// The values do not depend on the instruction set, only the time they take.
Functions choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return {checksum64_avx512, digest128_avx512};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
    return {checksum64_avx2, digest128_avx2};
#endif
  return {checksum64_plain, digest128_plain};
}

const Functions& functions() {
  static const Functions chosen = choose();
  return chosen;
}

}  // namespace

uint64_t checksum64(Bytes data) noexcept { return functions().checksum(data.data(), data.size()); }

Digest128 digest128(Bytes data, uint64_t seed) noexcept {
  return functions().digest(data.data(), data.size(), seed);
}

}  // namespace medes
