// Chooses how one page is stored. Internal to patch/.
#pragma once

#include <span>

#include "patch/blob_layout.h"
#include "patch/slides.h"
#include "patch/window_plan.h"
#include "patch/word_coder.h"

struct ZSTD_CCtx_s;

namespace medes {

using DiffFn = size_t (*)(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words);
DiffFn diff_kernel(SimdLevel level);

struct BaseWords {
  Bytes bytes;  // empty: not there
  Predictor predictor;
};

struct EncodedPage {
  blob::EntryKind kind = blob::EntryKind::zero;
  size_t length = 0;              // of the payload, in payload()
  uint64_t windows[kMaxWindows];  // slots of the plan
  size_t window_count = 0;
};

// One per thread and image; not thread-safe.
class PageEncoder {
 public:
  PageEncoder(std::span<const BaseWords> bases, const Dictionary& dictionary, SimdLevel level);
  ~PageEncoder();
  PageEncoder(const PageEncoder&) = delete;
  PageEncoder& operator=(const PageEncoder&) = delete;

  EncodedPage encode(const uint64_t* page, std::span<const uint64_t> candidates);
  const std::byte* payload() const { return payload_; }
  // One zstd frame of `in` into `out`; 0 when it does not fit.
  size_t compress(Bytes in, MutableBytes out);

 private:
  struct Window {
    uint64_t window = kNoWindow;
    const uint64_t* words = nullptr;
    size_t different = 0;
    alignas(64) uint64_t predicted[kWordsPerPage];
    uint8_t masks[kLinesPerPage];
  };

  const uint64_t* words_of(uint64_t window) const;
  size_t try_windows(const uint64_t* page, std::span<const uint64_t> candidates);
  bool add_window(const uint64_t* page, uint64_t window);
  EncodedPage patch_one(const uint64_t* page, const Window& w);
  EncodedPage patch_many(const uint64_t* page, size_t main, size_t count);
  EncodedPage encode_alone(const uint64_t* page, EncodedPage best);

  std::span<const BaseWords> bases_;
  PredictFn predict_;
  DiffFn diff_;
  WordEncoder coder_;
  ZSTD_CCtx_s* zstd_ = nullptr;
  Window windows_[kMaxWindows];
  size_t window_count_ = 0;
  std::byte payload_[kPayloadCapacity + kLineMapCapacity];
  std::byte trial_[kPageBytes];
};

}  // namespace medes
