// The layout of a slab file, little-endian, every offset in bytes from the start of the file:
//   0                 SlabHeader, padded with zeros to 4088; there: u64 checksum of all bytes before it
//   4096              u64 checksum of each page
//   pages_offset      page_count pages, 4 KiB aligned
//   behind the pages  sections (version 2), each 8-byte aligned; the whole 4 KiB aligned
// Version 1 had no sections, and its header checksum at offset 192. What a reader accepts: docs/formats.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "common/bytes.h"
#include "common/limits.h"
#include "image/image.h"

namespace medes {

inline constexpr uint64_t kSlabMagic = 0x31424C5344454Dull;  // "MEDSLB1\0"
inline constexpr uint32_t kSlabVersion = 2;
inline constexpr size_t kSlabSections = 8;

enum class SlabSectionKind : uint32_t {
  meta = 1,  // JSON of the agent: whose pages these are
};

struct SlabSection {
  uint32_t kind;
  uint32_t required;  // 1: a reader that does not know the kind must not use the slab
  uint64_t offset, bytes;
  uint64_t checksum;
};

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
  // From here on since version 2.
  uint32_t readable_from;  // the oldest reader's version that may use the slab
  uint32_t section_count;
  SlabSection sections[kSlabSections];
};

inline constexpr size_t kSlabV1HeaderBytes = 192;  // then its checksum
inline constexpr size_t kSlabChecksumOffset = kPageBytes - sizeof(uint64_t);

static_assert(sizeof(AddressRange) == 16);
static_assert(offsetof(SlabHeader, base_id) == 16);
static_assert(offsetof(SlabHeader, table_checksum) == 48);
static_assert(offsetof(SlabHeader, ranges) == 64);
static_assert(offsetof(SlabHeader, readable_from) == kSlabV1HeaderBytes);
static_assert(sizeof(SlabSection) == 32);
static_assert(sizeof(SlabHeader) == 456 && sizeof(SlabHeader) <= kSlabChecksumOffset);

using SlabHeaderPage = std::array<std::byte, kPageBytes>;

uint64_t slab_pages_offset(uint64_t page_count);
uint64_t slab_end_of_pages(const SlabHeader& header);
// Everything that must hold of a header before any length in it is used. Throws corrupt, unsupported.
SlabHeader checked_slab_header(const SlabHeaderPage& page, uint64_t file_bytes, const std::string& path);
// The meta section of a whole file whose header was checked, and its table of page checksums: both are
// compared with what the header says of them. Throws corrupt.
Bytes checked_slab_sections(const SlabHeader& header, Bytes file, const std::string& path);

}  // namespace medes
