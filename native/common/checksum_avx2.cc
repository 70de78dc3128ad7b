// XXH3 with this file's instruction set; checksum64() chooses at run time.
#if defined(__AVX2__)

#include <cstddef>
#include <cstdint>

// Everything inline and static: no other translation unit may pick up code of this instruction set.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace medes {

uint64_t checksum64_avx2(const void* data, size_t length) noexcept { return XXH3_64bits(data, length); }

}  // namespace medes

#endif
