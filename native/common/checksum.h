// The page and section checksum of every format here: XXH3, 64 bits, seed 0.
#pragma once

#include <cstdint>

#include "common/bytes.h"

namespace medes {

uint64_t checksum64(Bytes data) noexcept;

}  // namespace medes
