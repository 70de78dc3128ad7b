#include "codec/page_encoder.h"

#define ZSTD_STATIC_LINKING_ONLY  // contexts whose memory is wiped
#include <zstd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "codec/predict_kernels.h"
#include "common/error.h"
#include "common/wiped.h"

namespace medes {
namespace {

constexpr size_t kGoodEnoughWords = 12;   // exceptions below which no further window is tried
constexpr unsigned kWindowGainWords = 4;  // exceptions a further window must save: it costs 4 to 10 bytes
constexpr size_t kTryAloneBytes = 2200;   // patches above this are compared with the page compressed alone
constexpr size_t kPrefetched = 2;         // windows; further ones are tried too seldom
constexpr int kZstdLevel = 1;

bool is_zero(const uint64_t* page) {
  for (size_t i = 0; i < kWordsPerPage; i += 8) {
    const uint64_t any = page[i] | page[i + 1] | page[i + 2] | page[i + 3] | page[i + 4] | page[i + 5] |
                         page[i + 6] | page[i + 7];
    if (any != 0) return false;
  }
  return true;
}

// A context takes longer to make than a page to compress; a thread keeps its own till the end of its work.
class Context {
 public:
  Context() = default;
  ~Context() { wipe(); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ZSTD_CCtx* get() {
    if (context_ == nullptr) context_ = ZSTD_createCCtx_advanced({allocate, release, nullptr});
    if (context_ == nullptr) throw Error(Code::limit_exceeded, "no memory for a zstd context");
    return context_;
  }
  void wipe() noexcept {
    ZSTD_freeCCtx(context_);
    context_ = nullptr;
  }

 private:
  // In front of what zstd gets: how much it is.
  static constexpr size_t kFront = alignof(std::max_align_t);
  static void* allocate(void*, size_t bytes) {
    auto* const front = static_cast<std::byte*>(std::malloc(kFront + bytes));
    if (front == nullptr) return nullptr;
    std::memcpy(front, &bytes, sizeof bytes);
    return front + kFront;
  }
  static void release(void*, void* memory) {
    if (memory == nullptr) return;
    auto* const front = static_cast<std::byte*>(memory) - kFront;
    size_t bytes = 0;
    std::memcpy(&bytes, front, sizeof bytes);
    medes::wipe(memory, bytes);
    std::free(front);
  }

  ZSTD_CCtx* context_ = nullptr;
};

ZSTD_CCtx* thread_context() {
  static thread_local ThreadScratch<Context> context;
  return context.use().get();
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

WeighFn weigh_kernel(SimdLevel level) {
#if defined(__x86_64__)
  if (level == SimdLevel::avx512) return kernels::weigh_avx512;
  if (level == SimdLevel::avx2) return kernels::weigh_avx2;
#endif
  (void)level;
  return kernels::weigh_scalar;
}

PageEncoder::PageEncoder(std::span<const BaseWords> bases, const Dictionary& dictionary, SimdLevel level)
    : bases_(bases),
      predict_(predict_kernel(level)),
      diff_(diff_kernel(level)),
      weigh_(weigh_kernel(level)),
      coder_(dictionary, level),
      zstd_(thread_context()) {}

size_t PageEncoder::compress(Bytes in, MutableBytes out) const {
  const size_t n = ZSTD_compressCCtx(zstd_, out.data(), out.size(), in.data(), in.size(), kZstdLevel);
  return ZSTD_isError(n) ? 0 : n;
}

const uint64_t* PageEncoder::words_of(uint64_t window) const {
  const Bytes bytes = bases_[window_slot(window)].bytes;
  const uint64_t offset = window_unit(window) * kWindowStep;
  if (bytes.size() < kPageBytes || offset > bytes.size() - kPageBytes) return nullptr;
  return reinterpret_cast<const uint64_t*>(bytes.data() + offset);
}

void PageEncoder::prefetch(const uint64_t* page, std::span<const uint64_t> candidates) const {
  for (size_t line = 0; line < kLinesPerPage; ++line) __builtin_prefetch(page + line * 8);
  for (uint64_t candidate : candidates.first(kPrefetched)) {
    const uint64_t* const words = candidate == kNoWindow ? nullptr : words_of(candidate);
    if (words == nullptr) continue;
    for (size_t line = 0; line < kLinesPerPage; ++line) __builtin_prefetch(words + line * 8);
  }
}

// Fills windows_ until one is good enough; returns the index of the best single one.
size_t PageEncoder::try_windows(const uint64_t* page, std::span<const uint64_t> candidates) {
  window_count_ = 0;
  size_t best = 0;
  for (uint64_t candidate : candidates) {
    if (candidate == kNoWindow) break;
    const uint64_t* const words = words_of(candidate);
    if (words == nullptr) continue;
    Window& w = windows_[window_count_];
    w.window = candidate;
    w.words = words;
    w.different = weigh_(bases_[window_slot(candidate)].predictor, page, words, w.counts);
    if (w.different < windows_[best].different) best = window_count_;
    ++window_count_;
    if (windows_[best].different <= kGoodEnoughWords) break;
  }
  return best;
}

// Adds to the best window those that save enough, line by line; returns how many there are.
size_t PageEncoder::choose_windows(size_t best, LineMap& map, const Window** used) const {
  std::fill_n(map.window, kLinesPerPage, 0);
  used[0] = &windows_[best];
  if (used[0]->different <= kGoodEnoughWords) return 1;
  uint8_t counts[kLinesPerPage];
  std::memcpy(counts, used[0]->counts, sizeof counts);
  size_t used_count = 1;
  for (size_t c = 0; c < window_count_; ++c) {
    if (c == best) continue;
    const uint8_t* const other = windows_[c].counts;
    unsigned gain = 0;
    for (size_t line = 0; line < kLinesPerPage; ++line) {
      gain += static_cast<unsigned>(std::max(counts[line], other[line]) - other[line]);
    }
    if (gain < kWindowGainWords) continue;
    for (size_t line = 0; line < kLinesPerPage; ++line) {
      const bool better = other[line] < counts[line];
      map.window[line] = better ? static_cast<uint8_t>(used_count) : map.window[line];
      counts[line] = std::min(counts[line], other[line]);
    }
    used[used_count++] = &windows_[c];
  }
  return used_count;
}

EncodedPage PageEncoder::patch(const uint64_t* page, size_t best) {
  EncodedPage out;
  LineMap map;
  const Window* used[kMaxWindows];
  if (windows_[best].different == 0 && std::memcmp(page, windows_[best].words, kPageBytes) == 0) {
    out.kind = EntryKind::identical;
    out.windows[0] = windows_[best].window;
    out.window_count = 1;
    return out;
  }
  out.kind = EntryKind::patch;
  out.window_count = choose_windows(best, map, used);
  for (size_t i = 0; i < out.window_count; ++i) out.windows[i] = used[i]->window;

  alignas(64) uint64_t predicted[kWordsPerPage];
  for (size_t i = 0; i < out.window_count; ++i) {
    predict_(bases_[window_slot(used[i]->window)].predictor, used[i]->words, predicted, lines_of(map, i));
  }
  uint8_t masks[kLinesPerPage];
  diff_(page, predicted, masks, kWordsPerPage);
  const size_t map_bytes = out.window_count == 1 ? 0 : encode_line_map(map, payload_);
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
  if (window_count_ > 0) out = patch(page, best);
  if (out.kind == EntryKind::identical) return out;
  if (out.length == 0 || out.length > kTryAloneBytes) return encode_alone(page, out);
  return out;
}

}  // namespace medes
