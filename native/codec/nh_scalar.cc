#include <cstring>

#include "codec/nh_kernels.h"
#include "common/limits.h"

namespace medes::kernels {

namespace {

uint64_t word_at(const std::byte* bytes, size_t i) {
  uint64_t word;
  std::memcpy(&word, bytes + i * sizeof word, sizeof word);
  return word;
}

uint64_t product(uint64_t word, uint64_t key) {
  const auto low = static_cast<uint32_t>(word + key);
  const auto high = static_cast<uint32_t>((word >> 32) + (key >> 32));
  return uint64_t{low} * high;
}

}  // namespace

void nh_scalar(const std::byte* page, const std::byte* key, uint64_t sums[2]) noexcept {
  uint64_t first = 0, second = 0;
  for (size_t i = 0; i < kPageBytes / 8; ++i) {
    const uint64_t word = word_at(page, i);
    first += product(word, word_at(key, i));
    second += product(word, word_at(key, i + 8));
  }
  sums[0] = first;
  sums[1] = second;
}

}  // namespace medes::kernels
