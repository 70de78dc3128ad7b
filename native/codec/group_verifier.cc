#include "codec/group_verifier.h"

#include <cstring>

#include "codec/encoded_image_impl.h"
#include "common/checksum.h"

namespace medes {

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
  static thread_local ThreadScratch<EncodedImage::DecodeScratch> kept;
  const EncodedImage::DecodeScratch& scratch = kept.use();
  alignas(64) std::byte page[kPageBytes];
  for (size_t i = 0; i < count; ++i) {
    if (impl_->decode(0, i, i + 1, views_, page, *scratch) != Code::ok ||
        std::memcmp(page, pages + i * kPageBytes, kPageBytes) != 0) {
      return i;
    }
  }
  return count;
}

}  // namespace medes
