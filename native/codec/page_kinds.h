// The kinds of page that an encoded image holds: the one place that lists them (docs/patch-format.md has the
// same table). How a page comes to be of a kind is in page_encoder.cc, how it comes back in
// encoded_image_decode.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace medes {

// As they are counted and told.
enum class PageKind : uint8_t { zero, identical, patch, compressed, raw };
inline constexpr const char* kPageKindNames[] = {"zero", "identical", "patch", "compressed", "raw"};
inline constexpr size_t kPageKinds = std::size(kPageKindNames);

// As they are stored: three bits of a page's entry.
enum class EntryKind : uint8_t { zero, identical, patch, compressed, raw, words, loose };

// Where a payload lies in its group.
enum class GroupPart : uint8_t { none, packed, direct };

struct KindTraits {
  EntryKind kind;
  PageKind counted_as;
  GroupPart part;
  bool windows;    // has window references
  bool full_page;  // its payload is kPageBytes long; any other is shorter
  bool reusable;   // the next dedup takes over a page that is the same: another encoding would gain nothing
};

inline constexpr KindTraits kKinds[] = {
    {EntryKind::zero, PageKind::zero, GroupPart::none, false, false, true},
    {EntryKind::identical, PageKind::identical, GroupPart::none, true, false, true},
    {EntryKind::patch, PageKind::patch, GroupPart::packed, true, false, true},
    {EntryKind::compressed, PageKind::compressed, GroupPart::direct, false, false, false},
    {EntryKind::raw, PageKind::raw, GroupPart::direct, false, true, false},
    {EntryKind::words, PageKind::compressed, GroupPart::packed, false, false, false},
    // A patch of a page that a restore wants without the rest of its group.
    {EntryKind::loose, PageKind::patch, GroupPart::direct, true, false, true},
};
inline constexpr unsigned kEntryKinds = std::size(kKinds);
static_assert(kEntryKinds <= 8);
static_assert([] {
  for (unsigned i = 0; i < kEntryKinds; ++i)
    if (static_cast<unsigned>(kKinds[i].kind) != i || kKinds[i].counted_as >= PageKind{kPageKinds})
      return false;
  return true;
}());

namespace blob {

// Of the format, in pairs: in an even version pages carry keyed tags (page_tags.h), in the odd one before it
// checksums. An agent that lacks one of the kinds must refuse the image, so a new kind raises both.
inline constexpr uint32_t kVersionFirst = 3, kVersionUnkeyed = 3, kVersion = 4;
constexpr bool is_known(uint32_t version) { return version >= kVersionFirst && version <= kVersion; }
constexpr bool is_keyed(uint32_t version) { return version % 2 == 0; }

}  // namespace blob

// Sets of kinds, a bit each: asked for every page, with kinds that damage may have made up.
template <typename Predicate>
constexpr unsigned kinds_where(Predicate predicate) {
  unsigned bits = 0;
  for (unsigned i = 0; i < kEntryKinds; ++i)
    bits |= predicate(kKinds[i]) ? 1u << static_cast<unsigned>(kKinds[i].kind) : 0u;
  return bits;
}
inline constexpr unsigned kPackedKinds =
    kinds_where([](const KindTraits& k) { return k.part == GroupPart::packed; });
inline constexpr unsigned kDirectKinds =
    kinds_where([](const KindTraits& k) { return k.part == GroupPart::direct; });
inline constexpr unsigned kWindowKinds = kinds_where([](const KindTraits& k) { return k.windows; });
inline constexpr unsigned kFullPageKinds = kinds_where([](const KindTraits& k) { return k.full_page; });
inline constexpr unsigned kReusableKinds = kinds_where([](const KindTraits& k) { return k.reusable; });
constexpr bool in_packed(unsigned kind) { return kPackedKinds >> kind & 1; }
constexpr bool in_direct(unsigned kind) { return kDirectKinds >> kind & 1; }
constexpr bool has_windows(unsigned kind) { return kWindowKinds >> kind & 1; }
constexpr bool is_full_page(unsigned kind) { return kFullPageKinds >> kind & 1; }
constexpr bool is_reusable(unsigned kind) { return kReusableKinds >> kind & 1; }

}  // namespace medes
