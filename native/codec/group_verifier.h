// Decodes a group right after it was encoded, while its pages are in the cache, with the code that restores
// them. Internal to codec/.
#pragma once

#include <memory>
#include <span>

#include "codec/blob_layout.h"
#include "codec/encoded_image.h"

namespace medes {

// One group as it will stand in the blob.
struct GroupBytes {
  const blob::Group* index = nullptr;
  std::span<const uint16_t> entries;
  std::span<const uint64_t> page_checks;
  Bytes windows;  // of this group alone, whatever index->windows_offset says
  Bytes payload;  // packed part, direct part, kPayloadPadding readable bytes behind
};

// One per thread; not thread-safe.
class GroupVerifier {
 public:
  // From the blob's sections `bases` and `dictionary`. Throws corrupt.
  // `tags` are those of the blob, null for one with checksums.
  GroupVerifier(Bytes bases, uint32_t base_count, Bytes dictionary, std::span<const BaseView> views,
                std::shared_ptr<const PageTags> tags);
  ~GroupVerifier();
  // Index of the first page that does not decode to `pages`, or the number of pages. `first` is the image's
  // page that the group begins with.
  size_t first_wrong(const GroupBytes& group, uint64_t first, const std::byte* pages);

 private:
  std::unique_ptr<EncodedImage::Impl> impl_;
  std::span<const BaseView> views_;
};

// Covers what a group consists of: equal bytes decode alike.
uint64_t group_digest(const GroupBytes& group) noexcept;

}  // namespace medes
