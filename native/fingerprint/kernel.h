// What the fingerprint kernels share. Internal to fingerprint/. Kernels of different instruction sets are
// separate translation units: nothing here may be an inline function with external linkage that a kernel
// would compile with its own instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace medes::fp {

inline constexpr uint32_t kK0 = 0x9e3779b1u, kK1 = 0x85ebca77u, kK2 = 0xc2b2ae3du, kK3 = 0x27d4eb2fu;
inline constexpr uint32_t kK4 = 0x165667b1u;
inline constexpr size_t kWordsPerPage = 512;
inline constexpr size_t kBlocksPerPage = 256;
inline constexpr size_t kWindowsPerPage = 253;
inline constexpr size_t kRangesMax = 8;
inline constexpr uint64_t kPointerMark = 1ull << 62;

// Ranges prepared for the kernels: word w counts when w - begin[i] < length[i] for some i < count.
struct Ranges {
  uint64_t begin[kRangesMax] = {}, length[kRangesMax] = {};
  uint64_t all_begin = 0, all_length = 0;  // the hull of all: most vectors are dismissed by it alone
  uint32_t count = 0;
};

// Step 1 to 3: writes the normalised page and up to kWindowsPerPage order keys below `limit` (ascending
// position); returns how many.
using KeysFn = size_t (*)(const uint64_t* page, const Ranges& ranges, uint32_t limit, uint64_t* normalised,
                          uint32_t* keys);
size_t keys_scalar(const uint64_t* page, const Ranges& ranges, uint32_t limit, uint64_t* normalised,
                   uint32_t* keys);
size_t keys_avx2(const uint64_t* page, const Ranges& ranges, uint32_t limit, uint64_t* normalised,
                 uint32_t* keys);
size_t keys_avx512(const uint64_t* page, const Ranges& ranges, uint32_t limit, uint64_t* normalised,
                   uint32_t* keys);

// s of step 3 for four zero blocks.
constexpr uint64_t rotate_left(uint64_t v, int n) { return (v << n) | (v >> (64 - n)); }
inline constexpr uint64_t kZeroBlock = uint64_t{kK0} * kK1 + uint64_t{kK2} * kK3;
inline constexpr uint64_t kZeroWindow =
    kZeroBlock ^ rotate_left(kZeroBlock, 13) ^ rotate_left(kZeroBlock, 29) ^ rotate_left(kZeroBlock, 47);

}  // namespace medes::fp
