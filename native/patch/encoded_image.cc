#include "patch/encoded_image.h"

#define ZSTD_STATIC_LINKING_ONLY  // contexts in memory of ours
#include <zstd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/checksum.h"
#include "common/wiped.h"
#include "patch/blob_layout.h"
#include "patch/group_verifier.h"
#include "patch/slides.h"
#include "patch/varint.h"
#include "patch/window_plan.h"
#include "patch/word_coder.h"

namespace medes {

using blob::EntryKind;
static_assert(kMaxGroupPages == blob::kMaxGroupPages);

struct EncodedImage::Impl {
  Bytes blob;
  blob::Header header;
  uint64_t serial = 0;  // tells scratches which image their group belongs to
  std::vector<uint64_t> base_ids;
  std::vector<SlideTable> tables;
  std::vector<Predictor> predictors;
  Dictionary dictionary;
  std::shared_ptr<const PageTags> tags;  // null: XXH3, or the key is not here
  uint64_t first_page = 0;               // of group 0, where groups are those of a larger image
  const uint64_t* page_checks = nullptr;
  const uint16_t* entries = nullptr;
  const blob::Group* groups = nullptr;
  Bytes windows, payload;
  PredictFn predict = nullptr;
  DecodeWordsFn decode_words = nullptr;

  uint64_t group_count() const { return header.groups.bytes / sizeof(blob::Group); }
  size_t pages_in_group(uint64_t group) const {
    return static_cast<size_t>(
        std::min<uint64_t>(header.group_pages, header.page_count - group * header.group_pages));
  }
  void parse_bases(Bytes section);
  void parse_dictionary(Bytes section);
  void choose_kernels();
  Code decode(uint64_t group, size_t index, size_t next, std::span<const BaseView> bases, std::byte* out,
              Scratch& s) const;
  void check_groups() const;
  Code check(uint64_t page, const std::byte* bytes) const;
  bool load_group(uint64_t group, Scratch& s) const;
  bool unpack(Scratch& s) const;
  void prefetch(size_t index, std::span<const BaseView> bases, const Scratch& s) const;
  bool rebuild(size_t index, size_t next, std::span<const BaseView> bases, std::byte* out, Scratch& s) const;
};

// What is known of one group: where each page's payload and windows lie, and the unpacked patches once
// needed.
struct EncodedImage::Scratch {
  uint64_t serial = 0;  // 0: nothing loaded
  uint64_t group = 0;
  // Copies, bounds-checked when taken: the blob lies in shared memory, where a stray write may come at any
  // time.
  blob::Group index;
  uint16_t entries[kMaxGroupPages];
  bool unpacked = false;
  const std::byte* packed = nullptr;  // the unpacked patches: in `buffer` or in the blob itself
  uint32_t offset[kMaxGroupPages];    // of the page's payload in its part
  uint8_t window_count[kMaxGroupPages];
  uint64_t windows[kMaxGroupPages][kMaxWindows];
  WipedBytes buffer;
  size_t buffer_used = 0;

  // It lies in `workspace`, and keeps parts of what it unpacks.
  ZSTD_DCtx* context() {
    context_used = true;
    return zstd;
  }
  void make_context();
  WipedBytes workspace;
  ZSTD_DCtx* zstd = nullptr;
  bool context_used = false;
};

void EncodedImage::Scratch::make_context() {
  workspace.resize(ZSTD_estimateDCtxSize());
  zstd = ZSTD_initStaticDCtx(workspace.data(), workspace.size());
  if (zstd == nullptr) throw Error(Code::internal, "no zstd context can be made");
  context_used = false;
}

void EncodedImage::wipe(Scratch& s) noexcept {
  s.serial = 0;
  s.unpacked = false;
  medes::wipe(s.buffer.data(), s.buffer_used);
  s.buffer_used = 0;
  if (!s.context_used) return;
  medes::wipe(s.workspace.data(), s.workspace.size());
  s.make_context();
}

namespace {

uint64_t next_serial() {
  static std::atomic<uint64_t> next{1};
  return next++;
}

constexpr uint64_t kUnitLimit = 1ull << kWindowUnitBits;

[[noreturn]] void corrupt(const char* what) { throw Error(Code::corrupt, what, "encoded image"); }

Bytes section_bytes(Bytes blob, const blob::Section& s, bool checked) {
  if (s.offset % 8 != 0 || s.offset > blob.size() || s.bytes > blob.size() - s.offset)
    corrupt("section out of bounds");
  const Bytes bytes = blob.subspan(s.offset, s.bytes);
  if (checked && checksum64(bytes) != s.checksum) corrupt("section checksum does not match");
  return bytes;
}

// Reads one page's window references; false when malformed.
bool read_windows(const std::byte*& at, const std::byte* end, uint64_t reference, size_t index,
                  size_t base_count, uint64_t* out, uint8_t& count) {
  for (count = 0; count < kMaxWindows;) {
    uint64_t v, unit, slot;
    if (!get_varint(at, end, v)) return false;
    if (v & 2) {
      slot = v >> 2;
      if (!get_varint(at, end, unit)) return false;
    } else {
      slot = window_slot(reference);
      unit = window_unit(reference) + index * kUnitsPerPage + static_cast<uint64_t>(blob::unzigzag(v >> 2));
    }
    if (slot >= base_count || unit >= kUnitLimit) return false;
    out[count++] = pack_window(static_cast<uint32_t>(slot), unit);
    if ((v & 1) == 0) return true;
  }
  return false;
}

const uint64_t* window_words(uint64_t window, std::span<const BaseView> bases) {
  const uint32_t slot = window_slot(window);
  if (slot >= bases.size()) return nullptr;
  const Bytes bytes = bases[slot].bytes;
  const uint64_t offset = window_unit(window) * kWindowStep;
  if (bytes.size() < kPageBytes || offset > bytes.size() - kPageBytes) return nullptr;
  return reinterpret_cast<const uint64_t*>(bytes.data() + offset);
}

}  // namespace

void EncodedImage::Impl::parse_dictionary(Bytes section) {
  if (section.size() % sizeof(uint64_t) != 0 || section.size() > sizeof(Dictionary::words))
    corrupt("dictionary too long");
  if (!section.empty()) std::memcpy(dictionary.words, section.data(), section.size());
}

void EncodedImage::Impl::choose_kernels() {
  predict = predict_kernel(best_simd());
  decode_words = decode_words_kernel(best_simd());
}

void EncodedImage::Impl::parse_bases(Bytes section) {
  ByteReader in(section, "encoded image");
  for (uint32_t i = 0; i < header.base_count; ++i) {
    base_ids.push_back(in.get<uint64_t>());
    const auto slide_count = in.get<uint32_t>(), entry_count = in.get<uint32_t>();
    if (slide_count > kMaxSlides || entry_count > kMaxSlideEntries) corrupt("slide table too long");
    std::vector<int64_t> slides(slide_count);
    std::vector<uint64_t> entries_read(entry_count);
    const Bytes a = in.take(slide_count * sizeof(int64_t)), b = in.take(entry_count * sizeof(uint64_t));
    if (!a.empty()) std::memcpy(slides.data(), a.data(), a.size());
    if (!b.empty()) std::memcpy(entries_read.data(), b.data(), b.size());
    tables.emplace_back(std::move(slides), std::move(entries_read));
  }
  if (in.remaining() != 0) corrupt("bytes left after the bases");
  for (const SlideTable& t : tables) predictors.push_back(t.predictor());
}

void EncodedImage::Impl::check_groups() const {
  for (uint64_t g = 0; g < group_count(); ++g) {
    const blob::Group& group = groups[g];
    uint64_t packed = 0, direct = 0;
    const uint16_t* const entry = entries + g * header.group_pages;
    for (size_t i = 0; i < pages_in_group(g); ++i) {
      const unsigned kind = blob::entry_kind(entry[i]);
      const size_t length = blob::entry_length(entry[i]);
      if (kind >= blob::kEntryKinds) corrupt("unknown page kind");
      const bool stored = blob::in_packed(kind) || blob::in_direct(kind);
      if (kind == static_cast<unsigned>(EntryKind::raw) ? length != kPageBytes : length >= kPageBytes) {
        corrupt("page payload length out of bounds");
      }
      if (stored != (length != 0)) corrupt("page payload length does not fit its kind");
      (blob::in_direct(kind) ? direct : packed) += length;
    }
    if (packed != group.unpacked_bytes || direct != group.direct_bytes)
      corrupt("group length does not match its pages");
    if (group.packed_bytes > group.unpacked_bytes) corrupt("packed group longer than unpacked");
    if (group.payload_offset > payload.size() ||
        uint64_t{group.packed_bytes} + group.direct_bytes > payload.size() - group.payload_offset) {
      corrupt("group payload out of bounds");
    }
    if (group.windows_offset > windows.size()) corrupt("group windows out of bounds");
  }
}

EncodedImage EncodedImage::open(Bytes blob, const StoreKey* key) {
  if (blob.size() < sizeof(blob::Header) + sizeof(uint64_t) ||
      reinterpret_cast<uintptr_t>(blob.data()) % 8 != 0) {
    corrupt("too short or not aligned");
  }
  auto impl = std::make_shared<Impl>();
  blob::Header& h = impl->header;
  std::memcpy(static_cast<void*>(&h), blob.data(), offsetof(blob::Header, nonce));
  if (std::memcmp(h.magic, blob::kMagicText, sizeof h.magic) != 0) corrupt("no encoded image");
  if (h.version != blob::kVersion && h.version != blob::kVersionUnkeyed)
    throw Error(Code::unsupported,
                "encoded image: version " + std::to_string(h.version) + " is not known here");
  const size_t stored = blob::stored_bytes(h);
  uint64_t header_checksum;
  std::memcpy(&header_checksum, blob.data() + stored, sizeof header_checksum);
  if (checksum64(blob.first(stored)) != header_checksum) corrupt("header checksum does not match");
  std::memcpy(static_cast<void*>(&h), blob.data(), stored);
  if (h.blob_bytes != blob.size() || h.page_count > kMaxImagePages || h.base_count > kMaxBasesPerImage ||
      h.group_pages < 1 || h.group_pages > kMaxGroupPages) {
    corrupt("header field out of bounds");
  }
  if (h.version == blob::kVersion && key != nullptr) {
    impl->tags = std::make_shared<const PageTags>(*key, h.nonce);
    if (impl->tags->key_check() != h.key_check) corrupt("its page tags were made with another key");
  }
  impl->blob = blob;
  impl->serial = next_serial();
  impl->parse_bases(section_bytes(blob, h.bases, true));
  impl->parse_dictionary(section_bytes(blob, h.dictionary, true));
  const uint64_t groups = (h.page_count + h.group_pages - 1) / h.group_pages;
  if (h.page_checks.bytes != h.page_count * sizeof(uint64_t) ||
      h.entries.bytes != h.page_count * sizeof(uint16_t) || h.groups.bytes != groups * sizeof(blob::Group)) {
    corrupt("table length does not match the page count");
  }
  impl->page_checks = reinterpret_cast<const uint64_t*>(section_bytes(blob, h.page_checks, true).data());
  impl->entries = reinterpret_cast<const uint16_t*>(section_bytes(blob, h.entries, true).data());
  impl->groups = reinterpret_cast<const blob::Group*>(section_bytes(blob, h.groups, true).data());
  impl->windows = section_bytes(blob, h.windows, true);
  impl->payload = section_bytes(blob, h.payload, false);
  if (blob.size() - h.payload.offset - h.payload.bytes < blob::kTailPadding) corrupt("padding is missing");
  impl->check_groups();
  impl->choose_kernels();
  EncodedImage image;
  image.impl_ = std::move(impl);
  return image;
}

Bytes EncodedImage::blob() const { return impl_->blob; }
uint64_t EncodedImage::page_count() const { return impl_->header.page_count; }
std::span<const uint64_t> EncodedImage::base_ids() const { return impl_->base_ids; }
bool EncodedImage::keyed() const { return impl_->header.version == blob::kVersion; }
bool EncodedImage::matches(uint64_t page, const std::byte* bytes) const {
  return impl_->check(page, bytes) == Code::ok;
}
uint32_t EncodedImage::group_pages() const { return impl_->header.group_pages; }

PageKind EncodedImage::kind(uint64_t page) const {
  const auto kind = static_cast<EntryKind>(blob::entry_kind(impl_->entries[page]));
  if (kind == EntryKind::words) return PageKind::compressed;
  if (kind == EntryKind::loose) return PageKind::patch;
  return static_cast<PageKind>(kind);
}

bool EncodedImage::group_compressed(uint64_t group) const {
  const blob::Group& g = impl_->groups[group];
  return g.packed_bytes != g.unpacked_bytes;
}

std::array<size_t, 2> EncodedImage::slide_counts(uint32_t slot) const {
  const SlideTable& t = impl_->tables.at(slot);
  return {t.entries().size(), t.slides().size() - 1};
}

EncodedStats EncodedImage::stats() const {
  EncodedStats s;
  for (uint64_t page = 0; page < page_count(); ++page) ++s.pages[static_cast<size_t>(kind(page))];
  s.patch_bytes = impl_->payload.size();
  s.table_bytes = impl_->blob.size() - impl_->payload.size();
  s.windows = impl_->header.window_count;
  return s;
}

// Finds where the group's payloads and windows lie. Cheap next to unpacking: a few hundred bytes are read.
bool EncodedImage::Impl::load_group(uint64_t group, Scratch& s) const {
  s.serial = 0;
  s.index = groups[group];
  const size_t count = pages_in_group(group);
  std::memcpy(s.entries, entries + group * header.group_pages, count * sizeof(uint16_t));
  const blob::Group& g = s.index;
  if (g.windows_offset > windows.size() || g.unpacked_bytes > kMaxGroupPages * kPageBytes ||
      g.packed_bytes > g.unpacked_bytes || g.payload_offset > payload.size() ||
      uint64_t{g.packed_bytes} + g.direct_bytes > payload.size() - g.payload_offset) {
    return false;
  }
  const std::byte* at = windows.data() + g.windows_offset;
  const std::byte* const end = windows.data() + windows.size();
  uint32_t packed = 0, direct = 0;
  for (size_t i = 0; i < count; ++i) {
    const unsigned kind = blob::entry_kind(s.entries[i]);
    uint32_t& part = blob::in_direct(kind) ? direct : packed;
    s.offset[i] = part;
    part += static_cast<uint32_t>(blob::entry_length(s.entries[i]));
    s.window_count[i] = 0;
    if (blob::has_windows(kind) &&
        !read_windows(at, end, g.reference, i, base_ids.size(), s.windows[i], s.window_count[i])) {
      return false;
    }
  }
  if (packed != g.unpacked_bytes || direct != g.direct_bytes) return false;
  s.serial = serial;
  s.group = group;
  s.unpacked = false;
  return true;
}

bool EncodedImage::Impl::unpack(Scratch& s) const {
  const blob::Group& g = s.index;
  const std::byte* stored = payload.data() + g.payload_offset;
  if (g.packed_bytes == g.unpacked_bytes) {
    s.packed = stored;
  } else {
    // zstd puts literals far behind what it unpacks where it is given the room: only that much is wiped.
    const size_t room = std::min<size_t>(g.unpacked_bytes, s.buffer.size() - kPayloadPadding);
    s.buffer_used = std::max(s.buffer_used, room);
    const size_t n = ZSTD_decompressDCtx(s.context(), s.buffer.data(), room, stored, g.packed_bytes);
    if (n != g.unpacked_bytes) return false;
    s.packed = s.buffer.data();
  }
  s.unpacked = true;
  return true;
}

// The pages of a group are mostly wanted in order, and no hardware prefetcher finds their windows.
void EncodedImage::Impl::prefetch(size_t index, std::span<const BaseView> bases, const Scratch& s) const {
  if (index >= pages_in_group(s.group)) return;
  for (size_t i = 0; i < s.window_count[index]; ++i) {
    const uint64_t* const words = window_words(s.windows[index][i], bases);
    if (words == nullptr) continue;
    for (size_t line = 0; line < kLinesPerPage; ++line) __builtin_prefetch(words + line * 8);
  }
}

bool EncodedImage::Impl::rebuild(size_t index, size_t next, std::span<const BaseView> bases, std::byte* out,
                                 Scratch& s) const {
  const uint16_t entry = s.entries[index];
  const auto kind = static_cast<EntryKind>(blob::entry_kind(entry));
  const size_t length = blob::entry_length(entry);
  const blob::Group& g = s.index;
  const std::byte* const direct = payload.data() + g.payload_offset + g.packed_bytes + s.offset[index];
  auto* words = reinterpret_cast<uint64_t*>(out);
  const uint64_t* window[kMaxWindows];
  for (size_t i = 0; i < s.window_count[index]; ++i) {
    window[i] = window_words(s.windows[index][i], bases);
    if (window[i] == nullptr) return false;
  }
  switch (kind) {
    case EntryKind::zero: std::memset(out, 0, kPageBytes); return true;
    case EntryKind::identical: std::memcpy(out, window[0], kPageBytes); return true;
    case EntryKind::raw:
      if (length != kPageBytes) return false;
      std::memcpy(out, direct, kPageBytes);
      return true;
    case EntryKind::compressed:
      return ZSTD_decompressDCtx(s.context(), out, kPageBytes, direct, length) == kPageBytes;
    case EntryKind::patch:
    case EntryKind::loose:
    case EntryKind::words: break;
  }
  if (kind != EntryKind::words && s.window_count[index] == 0)
    return false;  // an entry that changed since open()
  const bool loose = kind == EntryKind::loose;
  if (!loose && !s.unpacked && !unpack(s)) return false;
  const Bytes patch{loose ? direct : s.packed + s.offset[index], length};
  if (kind == EntryKind::words) {
    std::memset(out, 0, kPageBytes);
    return decode_words(patch, dictionary, words);
  }
  if (s.window_count[index] == 1) {
    predict(predictors[window_slot(s.windows[index][0])], window[0], words, kAllLines);
    prefetch(next, bases, s);
    return decode_words(patch, dictionary, words);
  }
  LineMap map;
  const size_t map_bytes = decode_line_map(patch, s.window_count[index], map);
  if (map_bytes == SIZE_MAX) return false;
  for (size_t i = 0; i < s.window_count[index]; ++i) {
    predict(predictors[window_slot(s.windows[index][i])], window[i], words, lines_of(map, i));
  }
  prefetch(next, bases, s);
  return decode_words(patch.subspan(map_bytes), dictionary, words);
}

Code EncodedImage::Impl::decode(uint64_t group, size_t index, size_t next, std::span<const BaseView> bases,
                                std::byte* out, Scratch& s) const {
  if (s.serial != serial || s.group != group) {
    if (!load_group(group, s)) return Code::corrupt;
  }
  if (!rebuild(index, next, bases, out, s)) return Code::corrupt;
  return check(group * header.group_pages + index, out);
}

Code EncodedImage::Impl::check(uint64_t page, const std::byte* bytes) const {
  const uint64_t expected = page_checks[page];
  if (tags != nullptr) return tags->tag(first_page + page, bytes) == expected ? Code::ok : Code::corrupt;
  if (header.version == blob::kVersion) return Code::permission_denied;
  return checksum64({bytes, kPageBytes}) == expected ? Code::ok : Code::corrupt;
}

Code EncodedImage::decode(uint64_t page, uint64_t next, std::span<const BaseView> bases, std::byte* out,
                          Scratch& s) const {
  if (page >= page_count()) return Code::invalid_argument;
  const uint64_t group_pages = impl_->header.group_pages;
  const uint64_t group = page / group_pages;
  return impl_->decode(group, page % group_pages, next - group * group_pages, bases, out, s);
}

uint64_t EncodedImage::group_digest(uint64_t group) const {
  const blob::Group& g = impl_->groups[group];
  const uint64_t first = group * impl_->header.group_pages;
  const size_t count = impl_->pages_in_group(group);
  // Where the next group's windows begin, these end.
  const uint64_t windows_end =
      group + 1 < impl_->group_count() ? impl_->groups[group + 1].windows_offset : impl_->windows.size();
  if (windows_end < g.windows_offset || windows_end > impl_->windows.size()) return 0;
  return medes::group_digest({&g,
                              {impl_->entries + first, count},
                              {impl_->page_checks + first, count},
                              impl_->windows.subspan(g.windows_offset, windows_end - g.windows_offset),
                              impl_->payload.subspan(g.payload_offset, g.packed_bytes + g.direct_bytes)});
}

uint64_t group_digest(const GroupBytes& group) noexcept {
  const uint64_t parts[] = {group.index->packed_bytes,
                            group.index->unpacked_bytes,
                            group.index->reference,
                            checksum64(std::as_bytes(group.entries)),
                            checksum64(std::as_bytes(group.page_checks)),
                            checksum64(group.windows),
                            checksum64(group.payload)};
  return checksum64(std::as_bytes(std::span(parts)));
}

GroupVerifier::GroupVerifier(Bytes bases, uint32_t base_count, Bytes dictionary,
                             std::span<const BaseView> views, std::shared_ptr<const PageTags> tags)
    : impl_(std::make_unique<EncodedImage::Impl>()), views_(views) {
  impl_->header.version = tags != nullptr ? blob::kVersion : blob::kVersionUnkeyed;
  impl_->tags = std::move(tags);
  impl_->header.base_count = base_count;
  impl_->parse_bases(bases);
  impl_->parse_dictionary(dictionary);
  impl_->choose_kernels();
}

GroupVerifier::~GroupVerifier() = default;

size_t GroupVerifier::first_wrong(const GroupBytes& group, uint64_t first, const std::byte* pages) {
  const size_t count = group.entries.size();
  blob::Group index = *group.index;
  index.payload_offset = 0;
  index.windows_offset = 0;
  impl_->header.group_pages = static_cast<uint32_t>(count);
  impl_->header.page_count = count;
  impl_->entries = group.entries.data();
  impl_->first_page = first;
  impl_->page_checks = group.page_checks.data();
  impl_->groups = &index;
  impl_->windows = group.windows;
  impl_->payload = group.payload;
  impl_->serial = next_serial();  // the scratch holds another group
  static thread_local ThreadKept<EncodedImage::KeptScratch> kept;
  const EncodedImage::KeptScratch& scratch = kept.use();
  alignas(64) std::byte page[kPageBytes];
  for (size_t i = 0; i < count; ++i) {
    if (impl_->decode(0, i, i + 1, views_, page, *scratch) != Code::ok ||
        std::memcmp(page, pages + i * kPageBytes, kPageBytes) != 0) {
      return i;
    }
  }
  return count;
}

void EncodedImage::extents(uint64_t first, uint64_t count, std::vector<Extent>& out) const {
  if (first > page_count() || count > page_count() - first)
    throw Error(Code::invalid_argument, "pages out of range");
  const auto s = std::make_unique<Scratch>();
  for (uint64_t page = first; page < first + count; ++page) {
    const uint64_t group = page / impl_->header.group_pages;
    if ((s->serial == 0 || s->group != group) && !impl_->load_group(group, *s))
      corrupt("windows are malformed");
    const size_t index = page % impl_->header.group_pages;
    for (size_t i = 0; i < s->window_count[index]; ++i) {
      const uint64_t w = s->windows[index][i];
      out.push_back({window_slot(w), static_cast<uint32_t>(kPageBytes), window_unit(w) * kWindowStep});
    }
  }
}

bool EncodedImage::stored_windows(uint64_t page, Scratch& s, StoredPage& out) const {
  if (page >= page_count()) return false;
  const uint64_t group = page / impl_->header.group_pages;
  if ((s.serial != impl_->serial || s.group != group) && !impl_->load_group(group, s)) return false;
  const size_t index = page % impl_->header.group_pages;
  out.entry_kind = static_cast<uint8_t>(blob::entry_kind(s.entries[index]));
  out.windows = {s.windows[index], s.window_count[index]};
  out.length = blob::entry_length(s.entries[index]);
  out.payload = {};
  return true;
}

bool EncodedImage::stored_page(uint64_t page, Scratch& s, StoredPage& out) const {
  if (!stored_windows(page, s, out)) return false;
  const size_t index = page % impl_->header.group_pages, length = out.length;
  if (length == 0) return true;
  if (blob::in_direct(out.entry_kind)) {
    out.payload =
        impl_->payload.subspan(s.index.payload_offset + s.index.packed_bytes + s.offset[index], length);
    return true;
  }
  if (!s.unpacked && !impl_->unpack(s)) return false;
  out.payload = {s.packed + s.offset[index], length};
  return true;
}

bool EncodedImage::stored_group(uint64_t group, Scratch& s, StoredGroup& out) const {
  if (group >= impl_->group_count()) return false;
  if ((s.serial != impl_->serial || s.group != group) && !impl_->load_group(group, s)) return false;
  const blob::Group& g = s.index;  // its bounds were checked when it was loaded
  out = {impl_->payload.subspan(g.payload_offset, size_t{g.packed_bytes} + g.direct_bytes),
         g.packed_bytes,
         g.unpacked_bytes,
         g.direct_bytes,
         g.reference,
         impl_->pages_in_group(group)};
  return true;
}

const std::vector<SlideTable>& EncodedImage::slides() const { return impl_->tables; }
const Dictionary& EncodedImage::dictionary() const { return impl_->dictionary; }

std::unique_ptr<EncodedImage::Scratch, void (*)(EncodedImage::Scratch*)> EncodedImage::make_scratch() {
  std::unique_ptr<Scratch, void (*)(Scratch*)> s(new Scratch, [](Scratch* p) { delete p; });
  s->make_context();
  s->buffer.resize(kMaxGroupPages * kPageBytes + kPayloadPadding);
  return s;
}

}  // namespace medes
