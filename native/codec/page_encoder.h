// Chooses how one page is stored. Internal to codec/.
#pragma once

#include <span>

#include "codec/blob_layout.h"
#include "codec/slides.h"
#include "codec/window_plan.h"
#include "codec/word_coder.h"

struct ZSTD_CCtx_s;

namespace medes {

using DiffFn = size_t (*)(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words);
DiffFn diff_kernel(SimdLevel level);
using WeighFn = size_t (*)(const Predictor& predictor, const uint64_t* page, const uint64_t* window,
                           uint8_t* counts);
WeighFn weigh_kernel(SimdLevel level);

struct BaseWords {
  Bytes bytes;  // empty: not there
  Predictor predictor;
};

struct EncodedPage {
  EntryKind kind = EntryKind::zero;
  size_t length = 0;              // of the payload, in payload()
  uint64_t windows[kMaxWindows];  // slots of the plan
  size_t window_count = 0;
};

// One per thread and image; not thread-safe.
class PageEncoder {
 public:
  PageEncoder(std::span<const BaseWords> bases, const Dictionary& dictionary, SimdLevel level);
  PageEncoder(const PageEncoder&) = delete;
  PageEncoder& operator=(const PageEncoder&) = delete;

  EncodedPage encode(const uint64_t* page, std::span<const uint64_t> candidates);
  // Brings a page and its first windows into the cache for an encode() soon to come.
  void prefetch(const uint64_t* page, std::span<const uint64_t> candidates) const;
  const std::byte* payload() const { return payload_; }
  // One zstd frame of `in` into `out`; 0 when it does not fit.
  size_t compress(Bytes in, MutableBytes out) const;

 private:
  // A window tried: what of the page it would leave unexplained.
  struct Window {
    uint64_t window = kNoWindow;
    const uint64_t* words = nullptr;
    size_t different = 0;
    uint8_t counts[kLinesPerPage];
  };

  const uint64_t* words_of(uint64_t window) const;
  size_t try_windows(const uint64_t* page, std::span<const uint64_t> candidates);
  EncodedPage patch(const uint64_t* page, size_t best);
  size_t choose_windows(size_t best, LineMap& map, const Window** used) const;
  EncodedPage encode_alone(const uint64_t* page, EncodedPage best);

  std::span<const BaseWords> bases_;
  PredictFn predict_;
  DiffFn diff_;
  WeighFn weigh_;
  WordEncoder coder_;
  ZSTD_CCtx_s* zstd_;  // the thread's
  Window windows_[kMaxWindows];
  size_t window_count_ = 0;
  std::byte payload_[kPayloadCapacity + kLineMapCapacity];
  std::byte trial_[kPageBytes];
};

}  // namespace medes
