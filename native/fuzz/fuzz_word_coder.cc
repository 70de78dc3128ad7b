// Any bytes as a page's patch, with and without a window map in front.
#include <cstdint>
#include <cstring>
#include <vector>

#include "patch/word_coder.h"

// At every level of this CPU, which must agree.
static void decode(medes::Bytes payload, const medes::Dictionary& dictionary) {
  const auto run = [&](medes::SimdLevel level, std::vector<uint64_t>& words) {
    return medes::decode_words_kernel(level)(payload, dictionary, words.data());
  };
  std::vector<uint64_t> expected(medes::kWordsPerPage, 0x1234567);
  const bool good = run(medes::SimdLevel::scalar, expected);
  for (medes::SimdLevel level : medes::simd_levels()) {
    std::vector<uint64_t> words(medes::kWordsPerPage, 0x1234567);
    if (run(level, words) != good || words != expected) __builtin_trap();
  }
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > medes::kPageBytes) return 0;
  std::vector<std::byte> payload(size + medes::kPayloadPadding);
  if (size != 0) std::memcpy(payload.data(), data, size);
  static const medes::Dictionary dictionary = [] {
    medes::Dictionary d;
    for (size_t i = 0; i < medes::kDictionaryWords; ++i) d.words[i] = 0x7f0000000000 + i * 64;
    return d;
  }();
  decode({payload.data(), size}, dictionary);
  medes::LineMap map;
  const size_t used = medes::decode_line_map({payload.data(), size}, 3, map);
  if (used != SIZE_MAX) {
    if (used > size) __builtin_trap();
    for (uint8_t w : map.window) {
      if (w >= 3) __builtin_trap();
    }
    decode(medes::Bytes(payload).subspan(used, size - used), dictionary);
  }
  return 0;
}
