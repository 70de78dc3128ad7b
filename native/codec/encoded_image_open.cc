// Opening an encoded image: nothing in it is believed before it was checked.
#include <atomic>
#include <cstring>

#include "codec/encoded_image_impl.h"
#include "common/checksum.h"

namespace medes {

namespace {

[[noreturn]] void corrupt(const char* what) { throw Error(Code::corrupt, what, "encoded image"); }

Bytes section_bytes(Bytes blob, const blob::Section& s, bool checked) {
  if (s.offset % 8 != 0 || s.offset > blob.size() || s.bytes > blob.size() - s.offset)
    corrupt("section out of bounds");
  const Bytes bytes = blob.subspan(s.offset, s.bytes);
  if (checked && checksum64(bytes) != s.checksum) corrupt("section checksum does not match");
  return bytes;
}

}  // namespace

uint64_t next_serial() {
  static std::atomic<uint64_t> next{1};
  return next++;
}

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
      if (kind >= kEntryKinds) corrupt("unknown page kind");
      const bool stored = in_packed(kind) || in_direct(kind);
      if (is_full_page(kind) ? length != kPageBytes : length >= kPageBytes) {
        corrupt("page payload length out of bounds");
      }
      if (stored != (length != 0)) corrupt("page payload length does not fit its kind");
      (in_direct(kind) ? direct : packed) += length;
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
  if (!blob::is_known(h.version))
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
  if (blob::is_keyed(h.version) && key != nullptr) {
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

}  // namespace medes
