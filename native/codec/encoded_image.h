// The dedup'd form of an image, as one relocatable blob: header, bases referred to (with the address
// ranges and slide tables the predictor needs), dedup table (one entry a page: kind, tag or checksum, where
// its patch lies), patch groups. Format: docs/patch-format.md.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "codec/base_view.h"
#include "codec/page_kinds.h"
#include "codec/page_tags.h"
#include "common/bytes.h"
#include "common/error.h"

namespace medes {

struct EncodedStats {
  uint64_t pages[kPageKinds] = {};  // by PageKind
  uint64_t patch_bytes = 0;         // patches, compressed and raw payloads as stored
  uint64_t table_bytes = 0;         // everything else in the blob
  uint64_t windows = 0;             // base windows used by patch and identical pages
};

class SlideTable;
struct Dictionary;

// One page as it is stored. Views into the image or a scratch, valid until that is used again.
struct StoredPage {
  EntryKind kind = EntryKind::zero;
  Bytes payload;
  size_t length = 0;                  // of the payload, also when that was not asked for
  std::span<const uint64_t> windows;  // in the image's slots
};

// A whole group as it is stored.
struct StoredGroup {
  Bytes payload;  // packed part, then direct part
  uint32_t packed_bytes = 0, unpacked_bytes = 0, direct_bytes = 0;
  uint64_t reference = 0;
  size_t pages = 0;
};

inline constexpr size_t kMaxGroupPages = 64;  // pages whose patches one unpacking yields

// A validated, read-only view over a blob; owns only the lookup tables made from it. Copies share them; const
// calls are safe from any thread. Opening checks header and section checksums and every offset once, so that
// decode can be fast; decode itself still never reads or writes outside the buffers it was given, whatever
// the blob says.
class EncodedImage {
 public:
  // With the store's key, which pages of a keyed image cannot be told right without. Throws corrupt,
  // unsupported.
  static EncodedImage open(Bytes blob, const StoreKey* key = nullptr);

  uint64_t page_count() const;
  std::span<const uint64_t> base_ids() const;  // slot → base
  PageKind kind(uint64_t page) const;
  EntryKind stored_kind(uint64_t page) const;
  bool keyed() const;  // pages carry keyed tags, not checksums
  // Whether the bytes are the page's. Without the key of a keyed image none are.
  bool matches(uint64_t page, const std::byte* bytes) const;
  EncodedStats stats() const;

  // Appends the base extents that pages [first, first+count) read. Throws corrupt.
  void extents(uint64_t first, uint64_t count, std::vector<Extent>& out) const;
  // Rebuilds one page into out[4096] and checks it against its tag or checksum: ok, corrupt, or
  // permission_denied without the key (out is then undefined and must not be used). `bases` in slot order,
  // extents present. `scratch` is reused between calls by one thread (holds the last unpacked patch group)
  // and serves any image. Allocates nothing. `next` is the page asked for next, if that is known: what it is
  // made of is on its way to the cache meanwhile.
  struct Scratch;
  // The same of one page, with a scratch that decode goes on with. ok or corrupt.
  Code extents(uint64_t page, Scratch& scratch, std::vector<Extent>& out) const;
  static std::unique_ptr<Scratch, void (*)(Scratch*)> make_scratch();
  static void wipe(Scratch& scratch) noexcept;  // of what it has unpacked
  // One that a thread keeps (common/wiped.h).
  struct DecodeScratch {
    std::unique_ptr<Scratch, void (*)(Scratch*)> scratch = make_scratch();
    Scratch& operator*() const { return *scratch; }
    void wipe() noexcept { EncodedImage::wipe(*scratch); }
  };
  Code decode(uint64_t page, std::span<const BaseView> bases, std::byte* out, Scratch& scratch) const {
    return decode(page, page + 1, bases, out, scratch);
  }
  Code decode(uint64_t page, uint64_t next, std::span<const BaseView> bases, std::byte* out,
              Scratch& scratch) const;

  // Covers all that the group's pages are decoded from, bases and their tables apart.
  uint64_t group_digest(uint64_t group) const;
  // For an encoder that takes pages over into another image: a page's windows, and its unpacked payload too.
  // False when malformed.
  bool stored_windows(uint64_t page, Scratch& scratch, StoredPage& out) const;
  bool stored_page(uint64_t page, Scratch& scratch, StoredPage& out) const;
  bool stored_group(uint64_t group, Scratch& scratch, StoredGroup& out) const;
  const std::vector<SlideTable>& slides() const;  // by slot
  const Dictionary& dictionary() const;

  Bytes blob() const;
  uint32_t group_pages() const;
  bool group_compressed(uint64_t group) const;
  // Slides the predictor uses for a base: {granules, distinct slides}.
  std::array<size_t, 2> slide_counts(uint32_t slot) const;

 private:
  friend class GroupVerifier;
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace medes
