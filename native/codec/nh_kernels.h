// Internal to codec/: NH of a page (page_tags.h), one translation unit a level. `key` is kPageBytes + 64
// bytes, 64-byte aligned; the second sum is under the key from byte 64 on. Words are added to the key in
// 32-bit halves; the halves of each word are multiplied.
#pragma once

#include <cstddef>
#include <cstdint>

namespace medes::kernels {

void nh_scalar(const std::byte* page, const std::byte* key, uint64_t sums[2]) noexcept;
void nh_avx2(const std::byte* page, const std::byte* key, uint64_t sums[2]) noexcept;
void nh_avx512(const std::byte* page, const std::byte* key, uint64_t sums[2]) noexcept;

}  // namespace medes::kernels
