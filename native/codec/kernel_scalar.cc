// The reference: every other level must agree with it bit for bit.
#include <algorithm>

#include "codec/kernel.h"

namespace medes::fp {
namespace {

uint64_t normalise(uint64_t w, const Ranges& ranges) {
  for (uint32_t i = 0; i < ranges.count; ++i) {
    if (w - ranges.begin[i] < ranges.length[i]) return (w & 0xfff) | kPointerMark;
  }
  return w;
}

uint64_t product(uint64_t w, uint32_t low_key, uint32_t high_key) {
  return uint64_t{static_cast<uint32_t>(w) + low_key} * (static_cast<uint32_t>(w >> 32) + high_key);
}

}  // namespace

// Insertion into the sorted list of the k smallest.
size_t select_keys(const uint32_t* keys, size_t count, size_t k, uint32_t* best) {
  size_t size = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t key = keys[i];
    if (key == kNoKey || (size == k && key >= best[size - 1])) continue;
    size_t at = size;
    while (at > 0 && best[at - 1] > key) --at;
    // Keys come in ascending position, so an equal window already in the list lies before `at`.
    if (at > 0 && (best[at - 1] >> 8) == (key >> 8)) continue;
    const size_t end = std::min(size, k - 1);
    for (size_t j = end; j > at; --j) best[j] = best[j - 1];
    best[at] = key;
    size = end + 1;
  }
  return size;
}

void copy_windows(const uint64_t* page, const Ranges& ranges, size_t size, Samples& out) {
  for (size_t i = 0; i < size; ++i) {
    const uint64_t* const from = page + size_t{out.best[i] & 0xff} * 2;
    for (size_t j = 0; j < kWordsPerWindow; ++j) out.windows[i][j] = normalise(from[j], ranges);
  }
}

size_t sample_scalar(const uint64_t* page, const Ranges& ranges, size_t k, Samples& out) {
  uint32_t block[kBlocksPerPage];
  for (size_t b = 0; b < kBlocksPerPage; ++b) {
    block[b] = fold(product(normalise(page[2 * b], ranges), kK0, kK1) +
                    product(normalise(page[2 * b + 1], ranges), kK2, kK3));
  }
  uint32_t keys[kWindowsPerPage];
  for (size_t p = 0; p < kWindowsPerPage; ++p) {
    const uint32_t s = block[p] ^ rotate_left(block[p + 1], 7) ^ rotate_left(block[p + 2], 15) ^
                       rotate_left(block[p + 3], 23);
    keys[p] = s == kZeroWindow ? kNoKey : ((s * kK4) & ~0xffu) | static_cast<uint32_t>(p);
  }
  const size_t size = select_keys(keys, kWindowsPerPage, k, out.best);
  copy_windows(page, ranges, size, out);
  return size;
}

}  // namespace medes::fp
