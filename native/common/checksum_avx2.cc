// XXH3 with this file's instruction set; checksum64() chooses at run time.
#if defined(__AVX2__)

#include <cstddef>
#include <cstdint>

// Everything inline and static: no other translation unit may pick up code of this instruction set.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/checksum.h"

namespace medes {

uint64_t checksum64_avx2(const void* data, size_t length) noexcept { return XXH3_64bits(data, length); }
Digest128 digest128_avx2(const void* data, size_t length, uint64_t seed) noexcept {
  const XXH128_hash_t h = XXH3_128bits_withSeed(data, length, seed);
  return {h.low64, h.high64};
}

}  // namespace medes

#endif
