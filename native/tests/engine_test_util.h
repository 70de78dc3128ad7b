// Deterministic memory for the engine's tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/bytes.h"
#include "common/limits.h"

namespace medes::testing {

// SplitMix64: small, seeded, the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return next() % n; }

 private:
  uint64_t state_;
};

using Words = std::vector<uint64_t>;

inline Bytes bytes_of(const Words& words) { return std::as_bytes(std::span(words)); }

inline constexpr uint64_t kHeap = 0x5581'2340'0000, kMapped = 0x7f12'3450'0000;
inline constexpr uint64_t kRegionBytes = 64u << 20;

// Pages that look like a process heap: small integers, pointers into two regions, text, zeros.
inline Words heap_like(size_t pages, uint64_t seed) {
  Random random(seed);
  Words words(pages * kPageBytes / 8);
  for (uint64_t& w : words) {
    switch (random.below(8)) {
      case 0:
      case 1: w = 0; break;
      case 2: w = random.below(200); break;
      case 3:
      case 4: w = kHeap + random.below(kRegionBytes) / 16 * 16; break;
      case 5: w = kMapped + random.below(kRegionBytes) / 16 * 16; break;
      case 6: w = 0x2064'6573'6564'656dull + random.below(4); break;
      default: w = random.next(); break;
    }
  }
  return words;
}

// The same program in another process: pointers moved by page multiples, some words changed.
inline Words moved(const Words& words, int64_t heap_slide, int64_t mapped_slide, uint64_t change_one_in,
                   uint64_t seed) {
  Random random(seed);
  Words out(words);
  for (uint64_t& w : out) {
    if (w - kHeap < kRegionBytes)
      w += static_cast<uint64_t>(heap_slide);
    else if (w - kMapped < kRegionBytes)
      w += static_cast<uint64_t>(mapped_slide);
    if (change_one_in != 0 && random.below(change_one_in) == 0)
      w = random.below(3) == 0 ? random.next() : w + 24;
  }
  return out;
}

}  // namespace medes::testing
