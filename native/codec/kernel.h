// What the fingerprint kernels share. Internal to codec/. Kernels of different instruction sets are
// separate translation units: nothing here may be an inline function with external linkage that a kernel
// would compile with its own instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/limits.h"

namespace medes::fp {

inline constexpr uint32_t kK0 = 0x9e3779b1u, kK1 = 0x85ebca77u, kK2 = 0xc2b2ae3du, kK3 = 0x27d4eb2fu;
inline constexpr uint32_t kK4 = 0x165667b1u;
inline constexpr size_t kWordsPerPage = 512;
inline constexpr size_t kBlocksPerPage = 256;
inline constexpr size_t kWindowsPerPage = 253;
inline constexpr size_t kWordsPerWindow = 8;
inline constexpr uint32_t kNoKey = ~0u;  // an all-zero window's
inline constexpr size_t kRangesMax = 8;
inline constexpr uint64_t kPointerMark = 1ull << 62;

// Ranges prepared for the kernels: word w counts when w - begin[i] < length[i] for some i < count.
struct Ranges {
  uint64_t begin[kRangesMax] = {}, length[kRangesMax] = {};
  uint32_t count = 0;
};

// One page's samples: the k smallest order keys (their low byte is the position) ascending into best[k], and
// the normalised window of each; returns how many there are.
struct Samples {
  uint32_t best[kMaxSamples];
  alignas(64) uint64_t windows[kMaxSamples][kWordsPerWindow];
};
using SampleFn = size_t (*)(const uint64_t* page, const Ranges& ranges, size_t k, Samples& out);
size_t sample_scalar(const uint64_t* page, const Ranges& ranges, size_t k, Samples& out);
size_t sample_avx2(const uint64_t* page, const Ranges& ranges, size_t k, Samples& out);
size_t sample_avx512(const uint64_t* page, const Ranges& ranges, size_t k, Samples& out);

// The k smallest of the keys (ascending positions) that differ in the upper 24 bits, kNoKey left out; returns
// their number.
size_t select_keys(const uint32_t* keys, size_t count, size_t k, uint32_t* best);
// The windows of the first `size` of out.best.
void copy_windows(const uint64_t* page, const Ranges& ranges, size_t size, Samples& out);

// s of step 3 for four zero blocks.
constexpr uint32_t rotate_left(uint32_t v, int n) { return (v << n) | (v >> (32 - n)); }
constexpr uint32_t fold(uint64_t v) { return static_cast<uint32_t>(v ^ v >> 32); }
inline constexpr uint32_t kZeroBlock = fold(uint64_t{kK0} * kK1 + uint64_t{kK2} * kK3);
inline constexpr uint32_t kZeroWindow =
    kZeroBlock ^ rotate_left(kZeroBlock, 7) ^ rotate_left(kZeroBlock, 15) ^ rotate_left(kZeroBlock, 23);

}  // namespace medes::fp
