// From an encoded image's bytes to a page's.
#include <cstring>

#include "codec/encoded_image_impl.h"
#include "codec/varint.h"
#include "common/checksum.h"

namespace medes {

namespace {

constexpr uint64_t kUnitLimit = 1ull << kWindowUnitBits;

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
    uint32_t& part = in_direct(kind) ? direct : packed;
    s.offset[i] = part;
    part += static_cast<uint32_t>(blob::entry_length(s.entries[i]));
    s.window_count[i] = 0;
    if (has_windows(kind) &&
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
  if (blob::is_keyed(header.version)) return Code::permission_denied;
  return checksum64({bytes, kPageBytes}) == expected ? Code::ok : Code::corrupt;
}

}  // namespace medes
