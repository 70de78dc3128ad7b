// Encoded images opened, asked for extents and decoded: any bytes, or (odd first byte) a valid image with
// edits, each an offset (16 bits) and a value. The header and section checksums are made right first, or no
// mutation would get past them. A sanitizer sees any read or write outside the buffers.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "codec/blob_layout.h"
#include "common/checksum.h"
#include "common/error.h"
#include "dedup/encoder.h"
#include "registry/locations.h"

namespace {

constexpr size_t kPages = 6;
constexpr medes::StoreKey kKey{std::byte{1}};

void repair(std::vector<std::byte>& blob) {
  medes::blob::Header h;
  if (blob.size() < sizeof h + sizeof(uint64_t)) return;
  std::memcpy(&h, blob.data(), sizeof h);
  std::memcpy(h.magic, medes::blob::kMagicText, sizeof h.magic);
  h.version = h.version % 2 == 0 ? medes::blob::kVersion : medes::blob::kVersionUnkeyed;
  h.key_check = medes::PageTags(kKey, h.nonce).key_check();
  h.blob_bytes = blob.size();
  for (medes::blob::Section* s :
       {&h.bases, &h.dictionary, &h.page_checks, &h.entries, &h.groups, &h.windows}) {
    if (s->offset < medes::blob::header_bytes(h) || s->offset > blob.size() ||
        s->bytes > blob.size() - s->offset)
      continue;
    s->checksum = medes::checksum64(medes::Bytes(blob).subspan(s->offset, s->bytes));
  }
  medes::blob::put_header(h, blob.data());
}

const std::vector<std::byte>& base_bytes() {
  static const std::vector<std::byte> bytes = [] {
    std::vector<std::byte> b(kPages * medes::kPageBytes);
    uint64_t state = 1;
    for (size_t i = 0; i + 8 <= b.size(); i += 8) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const uint64_t word = i % 3 == 0 ? 0x7f0000000000 + (state >> 40) : i % 3 == 1 ? state >> 60 : state;
      std::memcpy(b.data() + i, &word, sizeof word);
    }
    return b;
  }();
  return bytes;
}

// A small image of every page kind.
const medes::WipedBytes& valid_blob(bool keyed) {
  static const auto make = [](const medes::StoreKey* key) {
    const medes::AddressSpace space{{{0x7f0000000000, 0x7f0001000000}}, false};
    std::vector<std::byte> target = base_bytes();
    for (size_t i = 3 * medes::kPageBytes; i < target.size(); i += 200) target[i] ^= std::byte{0x11};
    for (size_t i = 5 * medes::kPageBytes; i < target.size(); i += 16) target[i] ^= std::byte{0x77};
    std::memset(target.data(), 0, medes::kPageBytes);
    std::memset(target.data() + medes::kPageBytes, 0x33, medes::kPageBytes);
    const auto image = medes::MemoryImage::from_buffer(target, 0x7f0000000000, space);
    const auto prints = medes::fingerprint_pages(base_bytes(), space, 8);
    medes::Locations places(image->page_count(), 8);
    const uint32_t slot = places.add_base(1);
    for (uint64_t page = 0; page < image->page_count(); ++page) {
      places.packed()[page * 16] = medes::pack_location(slot, page, prints.positions[page * 8]);
    }
    const auto plan = medes::plan_windows(image->page_count(), prints, places);
    const std::vector<medes::BaseView> views{{1, base_bytes(), space}};
    medes::EncodeOptions options;
    options.group_pages = 2;
    options.key = key;
    return medes::encode_blob(*image, plan, views, options);
  };
  static const medes::WipedBytes with = make(&kKey), without = make(nullptr);
  return keyed ? with : without;
}

std::vector<std::byte> input_blob(const uint8_t* data, size_t size) {
  const auto* const bytes = reinterpret_cast<const std::byte*>(data);
  if (size == 0 || data[0] % 2 == 0) return {bytes, bytes + size};
  const medes::WipedBytes& valid = valid_blob(data[0] % 4 == 1);
  std::vector<std::byte> blob(valid.data(), valid.data() + valid.size());
  for (size_t i = 1; i + 3 <= size; i += 3) {
    blob[(data[i] | size_t{data[i + 1]} << 8) % blob.size()] = static_cast<std::byte>(data[i + 2]);
  }
  return blob;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> blob = input_blob(data, size);
  repair(blob);
  try {
    const auto image = medes::EncodedImage::open(blob, &kKey);
    static const medes::BaseView view{1, base_bytes(), {}};
    const std::vector<medes::BaseView> views(std::min<size_t>(image.base_ids().size(), 16), view);
    static const auto scratch = medes::EncodedImage::make_scratch();
    alignas(64) std::byte page[medes::kPageBytes];
    const uint64_t pages = std::min<uint64_t>(image.page_count(), 2 * kPages);
    for (uint64_t i = 0; i < pages; ++i) {
      (void)image.kind(i);
      (void)image.decode(i, views, page, *scratch);
    }
    std::vector<medes::Extent> extents;
    image.extents(0, pages, extents);
    (void)image.stats();
  } catch (const medes::Error& e) {
    if (e.code != medes::Code::corrupt && e.code != medes::Code::unsupported) __builtin_trap();
  }
  return 0;
}
