// LEB128 varints of the windows section. Internal to codec/.
#pragma once

#include <cstdint>

#include "common/bytes.h"

namespace medes {

inline void put_varint(std::vector<std::byte>& out, uint64_t v) {
  for (; v >= 0x80; v >>= 7) out.push_back(static_cast<std::byte>(v | 0x80));
  out.push_back(static_cast<std::byte>(v));
}

// Reads at `at`, never at or past `end`; false when it does not end in time or exceeds 64 bits.
inline bool get_varint(const std::byte*& at, const std::byte* end, uint64_t& v) {
  v = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (at == end) return false;
    const auto b = static_cast<uint64_t>(*at++);
    if (shift == 63 && b > 1) return false;
    v |= (b & 0x7f) << shift;
    if (b < 0x80) return true;
  }
  return false;
}

}  // namespace medes
