// The encoded image's layout (docs/patch-format.md draws it). Internal to codec/: everything else goes
// through EncodedImage. All integers little-endian.
//
//   header | bases | dictionary | page checks | page entries | group index | windows | payload | 64 bytes
//   of padding
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "codec/page_kinds.h"
#include "codec/page_tags.h"
#include "common/bytes.h"
#include "common/checksum.h"
#include "common/limits.h"

namespace medes::blob {

inline constexpr char kMagicText[9] = "MEDESENC";
inline constexpr size_t kMaxGroupPages = 64;
inline constexpr size_t kTailPadding = 64;

struct Section {
  uint64_t offset = 0;  // from the blob's begin
  uint64_t bytes = 0;
  uint64_t checksum = 0;  // checksum64; 0 for the payload, which the page checks cover
};

struct Header {
  char magic[8] = {};
  uint32_t version = 0;
  uint32_t group_pages = 0;  // 1 … kMaxGroupPages
  uint64_t page_count = 0;
  uint64_t blob_bytes = 0;
  uint64_t window_count = 0;  // of all pages, for statistics
  uint32_t base_count = 0;
  uint32_t reserved = 0;
  Section bases, dictionary, page_checks, entries, groups, windows, payload;
  // Where pages carry keyed tags.
  TagNonce nonce = {};
  uint64_t key_check = 0;  // PageTags::key_check
};
static_assert(sizeof(Header) == 240 && offsetof(Header, nonce) == 216);

// What is stored of the header, behind which its own checksum (checksum64) lies.
constexpr size_t stored_bytes(const Header& h) {
  return is_keyed(h.version) ? sizeof(Header) : offsetof(Header, nonce);
}
constexpr size_t header_bytes(const Header& h) { return stored_bytes(h) + sizeof(uint64_t); }

inline void put_header(const Header& h, std::byte* blob) {
  const size_t stored = stored_bytes(h);
  std::memcpy(blob, &h, stored);
  const uint64_t sum = checksum64({blob, stored});
  std::memcpy(blob + stored, &sum, sizeof sum);
}

// A page entry: kind in the upper 3 bits, payload length in the lower 13.
constexpr uint16_t pack_entry(EntryKind kind, size_t length) {
  return static_cast<uint16_t>(static_cast<unsigned>(kind) << 13 | length);
}
constexpr unsigned entry_kind(uint16_t entry) { return entry >> 13; }
constexpr size_t entry_length(uint16_t entry) { return entry & 0x1fff; }

struct Group {
  uint64_t payload_offset = 0;  // into the payload section: packed part, then direct part
  uint32_t packed_bytes = 0;    // as stored
  uint32_t unpacked_bytes = 0;  // equal to packed_bytes: stored as it is; else one zstd frame
  uint32_t direct_bytes = 0;
  uint32_t windows_offset = 0;  // into the windows section
  uint64_t reference = 0;       // pack_window(): page i of the group is expected at reference + i pages
};
static_assert(sizeof(Group) == 32);

// Window references of a page: varint (delta << 2 | explicit << 1 | more follows); delta is zigzag, in units
// of 16 bytes from the expected place in the reference's base. Explicit: slot << 2 | 2 | more, then varint
// unit.
constexpr uint64_t zigzag(int64_t v) {
  return static_cast<uint64_t>(v) << 1 ^ static_cast<uint64_t>(v >> 63);
}
constexpr int64_t unzigzag(uint64_t v) { return static_cast<int64_t>(v >> 1) ^ -static_cast<int64_t>(v & 1); }

}  // namespace medes::blob
