#include "common/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace medes {

#if defined(__x86_64__)
uint64_t checksum64_avx2(const void* data, size_t length) noexcept;
uint64_t checksum64_avx512(const void* data, size_t length) noexcept;
#endif

namespace {

using ChecksumFn = uint64_t (*)(const void*, size_t) noexcept;

uint64_t checksum64_plain(const void* data, size_t length) noexcept { return XXH3_64bits(data, length); }

ChecksumFn choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return checksum64_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) return checksum64_avx2;
#endif
  return checksum64_plain;
}

}  // namespace

// The values do not depend on the instruction set, only the time they take.
uint64_t checksum64(Bytes data) noexcept {
  static const ChecksumFn function = choose();
  return function(data.data(), data.size());
}

}  // namespace medes
