// The layout of a sandbox file, little-endian, every offset in bytes from the start of the file:
//   0                 SandboxHeader, padded with zeros to 4096
//   4096              meta: the agent's bytes
//   layout_offset     ImageLayout::serialise, 64-byte aligned
//   encoded_offset    the encoded image, 4 KiB aligned; carries its own checksums
//   mutable_offset    one UffdRecord a process, then one ChangeRecord a process, then one state byte an image
//                     page, each part 64-byte aligned; the whole 4 KiB aligned and mapped on its own, the
//                     only part that is mapped writable
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/limits.h"
#include "store/sandbox_file.h"

namespace medes {

inline constexpr uint64_t kSandboxMagic = 0x3158425344454Dull;  // "MEDSBX1\0"
inline constexpr uint32_t kSandboxVersion = 3;                  // written
inline constexpr uint32_t kSandboxVersionOldest = 3;            // read; docs/formats.md

struct SandboxHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;  // kPageBytes
  uint64_t file_bytes;
  uint64_t page_count;     // image pages
  uint64_t process_count;  // of the image layout
  uint64_t meta_bytes;
  uint64_t layout_offset, layout_bytes;
  uint64_t encoded_offset, encoded_bytes;
  uint64_t mutable_offset;
  uint64_t meta_checksum, layout_checksum;
  uint64_t header_checksum;  // over all bytes before it
};

static_assert(offsetof(SandboxHeader, file_bytes) == 16);
static_assert(offsetof(SandboxHeader, layout_offset) == 48);
static_assert(offsetof(SandboxHeader, mutable_offset) == 80);
static_assert(offsetof(SandboxHeader, header_checksum) == 104);
static_assert(sizeof(SandboxHeader) == 112);

static_assert(sizeof(UffdRecord) == 40);
static_assert(offsetof(UffdRecord, fd) == 4);
static_assert(offsetof(UffdRecord, start_time_ticks) == 8);
static_assert(offsetof(UffdRecord, inode) == 16);
static_assert(offsetof(UffdRecord, frame_address) == 24);
static_assert(offsetof(UffdRecord, stop) == 32 && offsetof(UffdRecord, keeper) == 36);
static_assert(sizeof(std::atomic<uint8_t>) == 1 && std::atomic<uint8_t>::is_always_lock_free);

uint64_t sandbox_header_checksum(const SandboxHeader& header);
// Offsets and the file's length follow from the sections' lengths alone; sets them.
void set_sandbox_offsets(SandboxHeader& header);
// Everything that must hold of a header before any length in it is used. Throws corrupt, unsupported.
void check_sandbox_header(const SandboxHeader& header, uint64_t file_bytes, const std::string& path);

// What lies in [0, mutable_offset), which is `fixed` and outlives this. Throws corrupt, unsupported.
struct SandboxSections {
  Bytes meta;
  ImageLayout layout;
  EncodedImage encoded;
};
// `key` as EncodedImage::open has it.
SandboxSections parse_sandbox_sections(const SandboxHeader& header, Bytes fixed, const std::string& path,
                                       const StoreKey* key);

// What lies behind it.
struct SandboxFileState {
  std::span<UffdRecord> uffds;
  std::span<ChangeRecord> changes;
  std::span<std::atomic<uint8_t>> pages;
};
SandboxFileState sandbox_file_state(const SandboxHeader& header, MutableBytes changing);

}  // namespace medes
