#include "codec/encoded_image.h"

#include <algorithm>

#include "codec/encoded_image_impl.h"
#include "codec/group_verifier.h"

namespace medes {

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

Bytes EncodedImage::blob() const { return impl_->blob; }
uint64_t EncodedImage::page_count() const { return impl_->header.page_count; }
std::span<const uint64_t> EncodedImage::base_ids() const { return impl_->base_ids; }
bool EncodedImage::keyed() const { return blob::is_keyed(impl_->header.version); }
bool EncodedImage::matches(uint64_t page, const std::byte* bytes) const {
  return impl_->check(page, bytes) == Code::ok;
}
uint32_t EncodedImage::group_pages() const { return impl_->header.group_pages; }

PageKind EncodedImage::kind(uint64_t page) const {
  return kKinds[static_cast<unsigned>(stored_kind(page))].counted_as;
}

EntryKind EncodedImage::stored_kind(uint64_t page) const {
  // The bytes may have changed since open().
  return static_cast<EntryKind>(std::min(blob::entry_kind(impl_->entries[page]), kEntryKinds - 1));
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

void EncodedImage::extents(uint64_t first, uint64_t count, std::vector<Extent>& out) const {
  if (first > page_count() || count > page_count() - first)
    throw Error(Code::invalid_argument, "pages out of range");
  const auto s = std::make_unique<Scratch>();
  for (uint64_t page = first; page < first + count; ++page)
    if (extents(page, *s, out) != Code::ok)
      throw Error(Code::corrupt, "windows are malformed", "encoded image");
}

Code EncodedImage::extents(uint64_t page, Scratch& s, std::vector<Extent>& out) const {
  if (page >= page_count()) return Code::corrupt;
  const uint64_t group = page / impl_->header.group_pages;
  if ((s.serial != impl_->serial || s.group != group) && !impl_->load_group(group, s)) return Code::corrupt;
  const size_t index = page % impl_->header.group_pages;
  for (size_t i = 0; i < s.window_count[index]; ++i) {
    const uint64_t w = s.windows[index][i];
    out.push_back({window_slot(w), static_cast<uint32_t>(kPageBytes), window_unit(w) * kWindowStep});
  }
  return Code::ok;
}

bool EncodedImage::stored_windows(uint64_t page, Scratch& s, StoredPage& out) const {
  if (page >= page_count()) return false;
  const uint64_t group = page / impl_->header.group_pages;
  if ((s.serial != impl_->serial || s.group != group) && !impl_->load_group(group, s)) return false;
  const size_t index = page % impl_->header.group_pages;
  out.kind = static_cast<EntryKind>(blob::entry_kind(s.entries[index]));
  out.windows = {s.windows[index], s.window_count[index]};
  out.length = blob::entry_length(s.entries[index]);
  out.payload = {};
  return true;
}

bool EncodedImage::stored_page(uint64_t page, Scratch& s, StoredPage& out) const {
  if (!stored_windows(page, s, out)) return false;
  const size_t index = page % impl_->header.group_pages, length = out.length;
  if (length == 0) return true;
  if (in_direct(static_cast<unsigned>(out.kind))) {
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
