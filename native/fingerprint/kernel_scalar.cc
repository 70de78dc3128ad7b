// The reference: every other level must agree with it bit for bit.
#include "fingerprint/kernel.h"

namespace medes::fp {
namespace {

uint64_t normalise(uint64_t w, const Ranges& ranges) {
  if (w - ranges.all_begin >= ranges.all_length) return w;
  for (uint32_t i = 0; i < ranges.count; ++i) {
    if (w - ranges.begin[i] < ranges.length[i]) return (w & 0xfff) | kPointerMark;
  }
  return w;
}

uint64_t product(uint64_t w, uint32_t low_key, uint32_t high_key) {
  return uint64_t{static_cast<uint32_t>(w) + low_key} * (static_cast<uint32_t>(w >> 32) + high_key);
}

}  // namespace

size_t keys_scalar(const uint64_t* page, const Ranges& ranges, uint32_t limit, uint64_t* normalised,
                   uint32_t* keys) {
  for (size_t i = 0; i < kWordsPerPage; ++i) normalised[i] = normalise(page[i], ranges);
  uint64_t block[kBlocksPerPage];
  for (size_t b = 0; b < kBlocksPerPage; ++b) {
    block[b] = product(normalised[2 * b], kK0, kK1) + product(normalised[2 * b + 1], kK2, kK3);
  }
  size_t count = 0;
  for (size_t p = 0; p < kWindowsPerPage; ++p) {
    const uint64_t s = block[p] ^ rotate_left(block[p + 1], 13) ^ rotate_left(block[p + 2], 29) ^
                       rotate_left(block[p + 3], 47);
    const uint64_t mixed = uint64_t{static_cast<uint32_t>(s ^ (s >> 29))} * kK4;
    const uint32_t key = (static_cast<uint32_t>(mixed >> 20) & ~0xffu) | static_cast<uint32_t>(p);
    if (s != kZeroWindow && key < limit) keys[count++] = key;
  }
  return count;
}

}  // namespace medes::fp
