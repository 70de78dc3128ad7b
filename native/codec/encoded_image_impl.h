// What an encoded image is behind its face: what open() found, and what is known of the group at work.
#pragma once

#define ZSTD_STATIC_LINKING_ONLY  // contexts in memory of ours
#include <zstd.h>

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "codec/blob_layout.h"
#include "codec/encoded_image.h"
#include "codec/slides.h"
#include "codec/window_plan.h"
#include "codec/word_coder.h"
#include "common/wiped.h"

namespace medes {

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

uint64_t next_serial();  // of an image, or of a group that is verified

}  // namespace medes
