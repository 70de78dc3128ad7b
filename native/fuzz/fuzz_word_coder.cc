// Any bytes as a page's patch, behind a window map where the first byte is odd; at every level of this CPU,
// which must agree.
#include <cstdint>
#include <cstring>
#include <vector>

#include "codec/word_coder.h"

using namespace medes;

namespace {

void fill(uint64_t* words) {
  for (size_t i = 0; i < kWordsPerPage; ++i) words[i] = 0x1234567;
}

void decode(Bytes payload, const Dictionary& dictionary) {
  alignas(64) static uint64_t expected[kWordsPerPage], words[kWordsPerPage];
  fill(expected);
  const bool good = decode_words_kernel(SimdLevel::scalar)(payload, dictionary, expected);
  for (const SimdLevel level : {SimdLevel::avx2, SimdLevel::avx512}) {
    const auto kernel = decode_words_kernel(level);
    if (level > best_simd() || kernel == decode_words_kernel(SimdLevel::scalar)) continue;
    fill(words);
    if (kernel(payload, dictionary, words) != good || std::memcmp(words, expected, sizeof words) != 0)
      __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > kPageBytes) return 0;
  static const Dictionary dictionary = [] {
    Dictionary d;
    for (size_t i = 0; i < kDictionaryWords; ++i) d.words[i] = 0x7f0000000000 + i * 64;
    return d;
  }();
  std::vector<std::byte> padded(size - 1 + kPayloadPadding);
  if (size > 1) std::memcpy(padded.data(), data + 1, size - 1);
  Bytes payload(padded.data(), size - 1);
  if (data[0] % 2 != 0) {
    const size_t windows = 2 + data[0] / 2 % (kMaxWindows - 1);
    LineMap map;
    const size_t used = decode_line_map(payload, windows, map);
    if (used == SIZE_MAX) return 0;
    if (used > payload.size()) __builtin_trap();
    for (const uint8_t window : map.window)
      if (window >= windows) __builtin_trap();
    payload = payload.subspan(used);
  }
  decode(payload, dictionary);
  return 0;
}
