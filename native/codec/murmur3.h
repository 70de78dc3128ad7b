// MurmurHash3 x64 128 (Austin Appleby's public-domain function, written anew): the hash of every sampled
// chunk.
#pragma once

#include <cstdint>

#include "common/bytes.h"

namespace medes {

struct Hash128 {
  uint64_t low = 0, high = 0;
};

Hash128 murmur3_x64_128(Bytes data, uint32_t seed = 0) noexcept;

// The registry key of a 64-byte chunk: low half of the 128-bit hash, seed 0; 0 is reserved for "no sample"
// and becomes 1.
uint64_t chunk_hash(const std::byte* chunk) noexcept;

}  // namespace medes
