// The layout of a slab file, little-endian, every offset in bytes from the start of the file:
//   0                 SlabHeader, padded with zeros to 4096
//   4096              u64 checksum of each page
//   pages_offset      page_count pages, 4 KiB aligned
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/limits.h"
#include "memory/image.h"

namespace medes {

inline constexpr uint64_t kSlabMagic = 0x31424C5344454Dull;  // "MEDSLB1\0"
inline constexpr uint32_t kSlabVersion = 1;

struct SlabHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;  // kPageBytes
  uint64_t base_id;
  uint64_t page_count;
  uint64_t pages_offset;
  uint64_t file_bytes;
  uint64_t table_checksum;  // over the page checksums
  uint32_t range_count;
  uint32_t value_only;  // 0 or 1
  AddressRange ranges[kMaxRanges];
  uint64_t header_checksum;  // over all bytes before it
};

static_assert(sizeof(AddressRange) == 16);
static_assert(offsetof(SlabHeader, base_id) == 16);
static_assert(offsetof(SlabHeader, table_checksum) == 48);
static_assert(offsetof(SlabHeader, ranges) == 64);
static_assert(offsetof(SlabHeader, header_checksum) == 192);
static_assert(sizeof(SlabHeader) == 200);

}  // namespace medes
