#include "codec/murmur3.h"

#include <bit>
#include <cstring>

#include "common/limits.h"

namespace medes {
namespace {

constexpr uint64_t kC1 = 0x87c37b91114253d5ull;
constexpr uint64_t kC2 = 0x4cf5ad432745937full;

uint64_t load64(const std::byte* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

uint64_t scramble1(uint64_t k) { return std::rotl(k * kC1, 31) * kC2; }
uint64_t scramble2(uint64_t k) { return std::rotl(k * kC2, 33) * kC1; }

uint64_t finalise(uint64_t k) {
  k ^= k >> 33;
  k *= 0xff51afd7ed558ccdull;
  k ^= k >> 33;
  k *= 0xc4ceb9fe1a85ec53ull;
  return k ^ (k >> 33);
}

}  // namespace

Hash128 murmur3_x64_128(Bytes data, uint32_t seed) noexcept {
  uint64_t h1 = seed, h2 = seed;
  const size_t blocks = data.size() / 16;
  const std::byte* at = data.data();
  for (size_t i = 0; i < blocks; ++i, at += 16) {
    h1 = std::rotl(h1 ^ scramble1(load64(at)), 27) + h2;
    h1 = h1 * 5 + 0x52dce729;
    h2 = std::rotl(h2 ^ scramble2(load64(at + 8)), 31) + h1;
    h2 = h2 * 5 + 0x38495ab5;
  }
  // A zero tail word scrambles to zero, so a zero-filled copy of the rest needs no case for its length.
  std::byte tail[16] = {};
  if (data.size() % 16 != 0) std::memcpy(tail, at, data.size() % 16);
  h2 ^= scramble2(load64(tail + 8));
  h1 ^= scramble1(load64(tail));
  h1 ^= data.size();
  h2 ^= data.size();
  h1 += h2;
  h2 += h1;
  h1 = finalise(h1);
  h2 = finalise(h2);
  h1 += h2;
  return {h1, h2 + h1};
}

uint64_t chunk_hash(const std::byte* chunk) noexcept {
  const uint64_t h = murmur3_x64_128({chunk, kChunkBytes}).low;
  return h == 0 ? 1 : h;
}

}  // namespace medes
