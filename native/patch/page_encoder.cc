#include "patch/page_encoder.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "common/error.h"
#include "patch/predict_kernels.h"

namespace medes {
namespace {

using blob::EntryKind;

constexpr size_t kGoodEnoughWords = 12;  // exceptions below which no further window is tried
constexpr int kWindowGainWords = 4;      // exceptions a further window must save: it costs 4 to 10 bytes
constexpr size_t kTryAloneBytes = 2200;  // patches above this are compared with the page compressed alone
constexpr int kZstdLevel = 1;

// std::popcount is a library call on baseline x86-64.
int bit_count(uint8_t v) {
  unsigned x = v - ((v >> 1) & 0x55u);
  x = (x & 0x33) + ((x >> 2) & 0x33);
  return static_cast<int>((x + (x >> 4)) & 0xf);
}

bool is_zero(const uint64_t* page) {
  for (size_t i = 0; i < kWordsPerPage; i += 8) {
    const uint64_t any = page[i] | page[i + 1] | page[i + 2] | page[i + 3] | page[i + 4] | page[i + 5] |
                         page[i + 6] | page[i + 7];
    if (any != 0) return false;
  }
  return true;
}

}  // namespace

DiffFn diff_kernel(SimdLevel level) {
#if defined(__x86_64__)
  if (level == SimdLevel::avx512) return kernels::diff_avx512;
  if (level == SimdLevel::avx2) return kernels::diff_avx2;
#endif
  (void)level;
  return kernels::diff_scalar;
}

PageEncoder::PageEncoder(std::span<const BaseWords> bases, const Dictionary& dictionary, SimdLevel level)
    : bases_(bases),
      predict_(predict_kernel(level)),
      diff_(diff_kernel(level)),
      coder_(dictionary),
      zstd_(ZSTD_createCCtx()) {
  if (zstd_ == nullptr) throw Error(Code::limit_exceeded, "no memory for a zstd context");
}

PageEncoder::~PageEncoder() { ZSTD_freeCCtx(zstd_); }

size_t PageEncoder::compress(Bytes in, MutableBytes out) {
  const size_t n = ZSTD_compressCCtx(zstd_, out.data(), out.size(), in.data(), in.size(), kZstdLevel);
  return ZSTD_isError(n) ? 0 : n;
}

const uint64_t* PageEncoder::words_of(uint64_t window) const {
  const Bytes bytes = bases_[window_slot(window)].bytes;
  const uint64_t offset = window_unit(window) * kWindowStep;
  if (bytes.size() < kPageBytes || offset > bytes.size() - kPageBytes) return nullptr;
  return reinterpret_cast<const uint64_t*>(bytes.data() + offset);
}

bool PageEncoder::add_window(const uint64_t* page, uint64_t window) {
  const uint64_t* words = words_of(window);
  if (words == nullptr) return false;
  Window& w = windows_[window_count_++];
  w.window = window;
  w.words = words;
  predict_(bases_[window_slot(window)].predictor, words, w.predicted, kWordsPerPage);
  w.different = diff_(page, w.predicted, w.masks, kWordsPerPage);
  return true;
}

// Fills windows_ until one is good enough; returns the index of the best single one.
size_t PageEncoder::try_windows(const uint64_t* page, std::span<const uint64_t> candidates) {
  window_count_ = 0;
  size_t best = 0;
  for (uint64_t candidate : candidates) {
    if (candidate == kNoWindow) break;
    if (!add_window(page, candidate)) continue;
    if (windows_[window_count_ - 1].different < windows_[best].different) best = window_count_ - 1;
    if (windows_[best].different <= kGoodEnoughWords) break;
  }
  return best;
}

EncodedPage PageEncoder::patch_one(const uint64_t* page, const Window& w) {
  EncodedPage out;
  out.windows[0] = w.window;
  out.window_count = 1;
  if (std::memcmp(page, w.words, kPageBytes) == 0) {
    out.kind = EntryKind::identical;
    return out;
  }
  out.kind = EntryKind::patch;
  out.length = coder_.encode(page, w.predicted, w.masks, payload_);
  return out;
}

// Adds to the main window those that save enough, line by line.
EncodedPage PageEncoder::patch_many(const uint64_t* page, size_t main, size_t count) {
  LineMap map;
  std::fill_n(map.window, kLinesPerPage, 0);
  const Window* used[kMaxWindows] = {&windows_[main]};
  uint8_t masks[kLinesPerPage];
  std::memcpy(masks, windows_[main].masks, sizeof masks);
  size_t used_count = 1;
  for (size_t c = 0; c < count; ++c) {
    if (c == main) continue;
    int gain = 0;
    for (size_t line = 0; line < kLinesPerPage; ++line) {
      gain += std::max(bit_count(masks[line]) - bit_count(windows_[c].masks[line]), 0);
    }
    if (gain < kWindowGainWords) continue;
    used[used_count] = &windows_[c];
    for (size_t line = 0; line < kLinesPerPage; ++line) {
      if (bit_count(windows_[c].masks[line]) >= bit_count(masks[line])) continue;
      masks[line] = windows_[c].masks[line];
      map.window[line] = static_cast<uint8_t>(used_count);
    }
    ++used_count;
  }
  if (used_count == 1) return patch_one(page, windows_[main]);

  alignas(64) uint64_t predicted[kWordsPerPage];
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    const Window& w = *used[map.window[line]];
    std::memcpy(predicted + line * 8, w.predicted + line * 8, 64);
  }
  EncodedPage out;
  out.kind = EntryKind::patch;
  for (size_t i = 0; i < used_count; ++i) out.windows[i] = used[i]->window;
  out.window_count = used_count;
  const size_t map_bytes = encode_line_map(map, payload_);
  const size_t words = coder_.encode(page, predicted, masks, payload_ + map_bytes);
  if (words == 0 || words + map_bytes >= kPageBytes) return out;  // length 0: no patch
  out.length = map_bytes + words;
  return out;
}

// What a page costs without any base; `best` is the patch so far (kind zero: none).
EncodedPage PageEncoder::encode_alone(const uint64_t* page, EncodedPage best) {
  const Bytes bytes{reinterpret_cast<const std::byte*>(page), kPageBytes};
  const size_t limit = best.length != 0 ? best.length - 1 : kPageBytes - 1;
  const size_t n = compress(bytes, {trial_, limit});
  EncodedPage out;
  if (n != 0) {
    std::memcpy(payload_, trial_, n);
    out.kind = EntryKind::compressed;
    out.length = n;
    return out;
  }
  if (best.length != 0) return best;
  std::memcpy(payload_, page, kPageBytes);
  out.kind = EntryKind::raw;
  out.length = kPageBytes;
  return out;
}

EncodedPage PageEncoder::encode(const uint64_t* page, std::span<const uint64_t> candidates) {
  if (is_zero(page)) return {};
  const size_t best = try_windows(page, candidates);
  EncodedPage out;
  if (window_count_ == 1 || (window_count_ > 1 && windows_[best].different <= kGoodEnoughWords)) {
    out = patch_one(page, windows_[best]);
  } else if (window_count_ > 1) {
    out = patch_many(page, best, window_count_);
  }
  if (out.kind == EntryKind::identical) return out;
  if (out.length == 0 || out.length > kTryAloneBytes) return encode_alone(page, out);
  return out;
}

}  // namespace medes
