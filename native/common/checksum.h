#pragma once

#include <cstdint>

#include "common/bytes.h"

namespace medes {

// The page and section checksum of every format here: XXH3, 64 bits, seed 0.
uint64_t checksum64(Bytes data) noexcept;

// XXH3, 128 bits, with a seed: tells within one operation whether bytes are the same; never stored.
struct Digest128 {
  uint64_t low = 0, high = 0;
  bool operator==(const Digest128&) const = default;
};
Digest128 digest128(Bytes data, uint64_t seed) noexcept;

}  // namespace medes
