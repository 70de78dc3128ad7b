// Window plan, slides, prediction and word coder.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "codec/page_encoder.h"
#include "codec/predict_kernels.h"
#include "codec/slides.h"
#include "codec/window_plan.h"
#include "codec/word_coder.h"
#include "common/error.h"
#include "registry/fingerprint_index.h"
#include "tests/engine_test_util.h"

namespace medes {
namespace {

using testing::bytes_of;
using testing::Random;
using testing::Words;

// --- word coder -------------------------------------------------------------------------------------------

struct Coded {
  std::vector<std::byte> payload;  // with padding behind
  size_t length = 0;
};

Coded encode_page(const Words& page, const Words& predicted, const Dictionary& dictionary,
                  SimdLevel level = SimdLevel::scalar) {
  uint8_t masks[kLinesPerPage];
  diff_kernel(SimdLevel::scalar)(page.data(), predicted.data(), masks, kWordsPerPage);
  Coded out;
  out.payload.resize(kPayloadCapacity);
  out.length =
      WordEncoder(dictionary, level).encode(page.data(), predicted.data(), masks, out.payload.data());
  return out;
}

// Encodes, decodes, compares, at every level; returns the payload's length (0: it did not fit).
size_t round_trip(const Words& page, const Words& predicted, const Dictionary& dictionary = {}) {
  const Coded coded = encode_page(page, predicted, dictionary);
  for (SimdLevel level : simd_levels()) {
    const Coded same = encode_page(page, predicted, dictionary, level);
    EXPECT_EQ(same.length, coded.length) << simd_name(level);
    EXPECT_TRUE(std::equal(coded.payload.begin(),
                           coded.payload.begin() + static_cast<ptrdiff_t>(coded.length),
                           same.payload.begin()))
        << simd_name(level);
  }
  if (coded.length == 0) return 0;
  // A buffer of the exact size, so that a sanitizer sees any read past the padding.
  std::vector<std::byte> exact(
      coded.payload.begin(), coded.payload.begin() + static_cast<ptrdiff_t>(coded.length + kPayloadPadding));
  for (SimdLevel level : simd_levels()) {
    Words out = predicted;
    EXPECT_TRUE(decode_words_kernel(level)({exact.data(), coded.length}, dictionary, out.data()));
    EXPECT_EQ(out, page) << simd_name(level);
  }
  return coded.length;
}

TEST(WordCoder, EveryTagComesBack) {
  Dictionary dictionary;
  for (size_t i = 0; i < kDictionaryWords; ++i) dictionary.words[i] = 0x7f00'0000'0000 + i * 4096;
  Words predicted(kWordsPerPage), page;
  Random random(1);
  for (uint64_t& w : predicted) w = random.next();
  page = predicted;
  size_t at = 0;
  const auto put = [&](uint64_t w) { page[at += 3] = w; };
  put(0);
  for (uint64_t low : {0x1ull, 0x100ull, 0x1'0000ull, 0x100'0000ull}) put(predicted[at + 3] ^ low);
  put(0x42);
  put(0xffff);
  put(0xffff'ffff);
  put(0x1234'5678'9abc);
  put(0x1234'5678'9a00);  // near the newest word
  put(0x1234'56ff'9a00);
  put(0x12ff'56ff'9a00);
  put(predicted[at + 3] ^ 0x8000'0000'0000'0000);
  put(dictionary.words[200]);
  put(dictionary.words[3]);       // in the cache from the start
  put(dictionary.words[3] + 17);  // near a word of the cache
  put(random.next());
  put(page[at]);                                        // cached
  put(predicted[at + 3] + (page[at] - predicted[at]));  // the same delta
  EXPECT_GT(round_trip(page, predicted, dictionary), 0u);
}

TEST(WordCoder, ZeroRunsOfEveryLength) {
  Words predicted(kWordsPerPage, 0x55);
  for (size_t length = 0; length <= kWordsPerPage; ++length) {
    for (size_t begin : {size_t{0}, size_t{1}, kWordsPerPage - length}) {
      if (begin + length > kWordsPerPage) continue;
      Words page = predicted;
      std::fill_n(page.begin() + static_cast<ptrdiff_t>(begin), length, 0);
      const size_t n = round_trip(page, predicted);
      ASSERT_GT(n, 0u);
      ASSERT_LE(n, 8 + 64 + 256u);
    }
  }
}

TEST(WordCoder, BoundariesAt128Words) {
  Random random(4);
  for (size_t length : {127u, 128u, 129u, 255u, 256u, 257u, 384u}) {
    for (int kind = 0; kind < 4; ++kind) {
      Words predicted(kWordsPerPage), page(kWordsPerPage);
      for (size_t i = 0; i < kWordsPerPage; ++i) {
        predicted[i] = random.next();
        page[i] = i >= length ? predicted[i]
                  : kind == 0 ? 0
                  : kind == 1 ? i + 1
                  : kind == 2 ? 0x1122334455667788
                              : predicted[i] + 8;
      }
      ASSERT_GT(round_trip(page, predicted), 0u) << length << " " << kind;
    }
  }
}

TEST(WordCoder, WorstCaseIsRefusedNotTruncated) {
  Random random(9);
  Words predicted(kWordsPerPage), page(kWordsPerPage);
  for (size_t i = 0; i < kWordsPerPage; ++i)
    page[i] = random.next() | 1ull << 63, predicted[i] = random.next() >> 1;
  EXPECT_EQ(round_trip(page, predicted), 0u);
  // Around the point where it begins to fit.
  size_t fitted = 0;
  for (size_t n = 400; n < kWordsPerPage; ++n) {
    Words some = predicted;
    std::copy_n(page.begin(), n, some.begin());
    const size_t length = round_trip(some, predicted);
    ASSERT_LT(length, kPageBytes);
    fitted += length != 0;
  }
  EXPECT_GT(fitted, 10u);
}

TEST(WordCoder, RandomMixes) {
  Random random(21);
  for (int round = 0; round < 300; ++round) {
    Words predicted = testing::heap_like(1, random.next());
    Words page = testing::moved(predicted, static_cast<int64_t>(random.below(9)) << 12, 4096,
                                1 + random.below(40), random.next());
    Dictionary dictionary;
    for (size_t i = 0; i < random.below(kDictionaryWords + 1); ++i)
      dictionary.words[i] = page[random.below(512)];
    round_trip(page, predicted, dictionary);
  }
}

TEST(WordCoder, HostilePayloadsAreRefusedOrHarmless) {
  Random random(33);
  const Dictionary dictionary;
  const Words predicted = testing::heap_like(1, 5);
  const Coded good = encode_page(testing::moved(predicted, 4096, 8192, 6, 1), predicted, dictionary);
  ASSERT_GT(good.length, 0u);
  for (int round = 0; round < 20000; ++round) {
    size_t length = 1 + random.below(good.length);
    std::vector<std::byte> payload(length + kPayloadPadding);
    if (round % 2 == 0) {
      std::copy_n(good.payload.begin(), length, payload.begin());
      for (uint64_t flips = 1 + random.below(4); flips > 0; --flips) {
        payload[random.below(length)] ^= static_cast<std::byte>(1 + random.below(255));
      }
    } else {
      for (std::byte& b : payload) b = static_cast<std::byte>(random.next());
    }
    Words expected = predicted;  // sanitizers watch the reads and writes
    const bool good_one =
        decode_words_kernel(SimdLevel::scalar)({payload.data(), length}, dictionary, expected.data());
    for (SimdLevel level : simd_levels()) {
      Words out = predicted;
      EXPECT_EQ(decode_words_kernel(level)({payload.data(), length}, dictionary, out.data()), good_one);
      EXPECT_EQ(out, expected) << simd_name(level);
    }
  }
  std::byte padding[kPayloadPadding] = {};
  for (SimdLevel level : simd_levels()) {
    Words out = predicted;
    EXPECT_FALSE(decode_words_kernel(level)({padding, 0}, dictionary, out.data()));
  }
}

TEST(LineMap, EveryPatternComesBack) {
  Random random(2);
  for (int round = 0; round < 500; ++round) {
    const size_t windows = 2 + random.below(3);
    LineMap map, back;
    for (uint8_t& w : map.window) w = static_cast<uint8_t>(random.below(2) ? random.below(windows) : 0);
    std::byte out[kLineMapCapacity];
    const size_t n = encode_line_map(map, out);
    ASSERT_LE(n, kLineMapCapacity);
    ASSERT_EQ(decode_line_map({out, n}, windows, back), n);
    ASSERT_EQ(std::memcmp(&map, &back, sizeof map), 0);
    for (size_t window = 0; window < windows; ++window) {
      for (size_t line = 0; line < kLinesPerPage; ++line) {
        ASSERT_EQ(lines_of(map, window) >> line & 1, uint64_t{map.window[line] == window});
      }
    }
    for (size_t cut = 0; cut < n; ++cut) EXPECT_EQ(decode_line_map({out, cut}, windows, back), SIZE_MAX);
    const uint8_t highest = *std::max_element(map.window, map.window + kLinesPerPage);
    if (highest > 0) EXPECT_EQ(decode_line_map({out, n}, highest, back), SIZE_MAX);
  }
}

// --- slides -----------------------------------------------------------------------------------------------

TEST(Slides, LearntAndPredictedAlikeAtEveryLevel) {
  const Words base = testing::heap_like(16, 3);
  const Words target = testing::moved(base, 0x1234000, -0x55000, 50, 4);
  const AddressSpace space{{{testing::kHeap - (64 << 20), testing::kHeap + 2 * testing::kRegionBytes},
                            {testing::kMapped - (64 << 20), testing::kMapped + 2 * testing::kRegionBytes}},
                           false};
  SlideLearner learner(space, space);
  for (size_t page = 0; page < 16; ++page) learner.add(target.data() + page * 512, base.data() + page * 512);
  const SlideTable table = learner.finish();
  ASSERT_GE(table.slides().size(), 3u);
  Words expected(base.size());
  for (size_t page = 0; page < 16; ++page) {
    kernels::predict_scalar(table.predictor(), base.data() + page * 512, expected.data() + page * 512,
                            kAllLines);
  }
  size_t right = 0;
  for (size_t i = 0; i < base.size(); ++i) right += expected[i] == target[i];
  EXPECT_GT(right, base.size() * 9 / 10);
  Random random(6);
  for (SimdLevel level : simd_levels()) {
    for (size_t at = 0; at < base.size(); at += 512) {
      const uint64_t lines = at == 0 ? kAllLines : random.next() & random.next();
      Words predicted(512, 7), wanted(512, 7);
      predict_kernel(level)(table.predictor(), base.data() + at, predicted.data(), lines);
      for (size_t i = 0; i < 512; ++i) wanted[i] = lines >> (i / 8) & 1 ? expected[at + i] : 7;
      EXPECT_EQ(predicted, wanted) << simd_name(level);
      uint8_t counts[kLinesPerPage], counts_expected[kLinesPerPage];
      const size_t sum =
          kernels::weigh_scalar(table.predictor(), target.data() + at, base.data() + at, counts_expected);
      EXPECT_EQ(weigh_kernel(level)(table.predictor(), target.data() + at, base.data() + at, counts), sum);
      EXPECT_EQ(std::memcmp(counts, counts_expected, sizeof counts), 0) << simd_name(level);
      EXPECT_LT(sum, 60u);  // the slides explain the rest
    }
    std::vector<uint8_t> masks(base.size() / 8), masks_expected(base.size() / 8);
    const size_t n = kernels::diff_scalar(expected.data(), target.data(), masks_expected.data(), base.size());
    EXPECT_EQ(diff_kernel(level)(expected.data(), target.data(), masks.data(), base.size()), n);
    EXPECT_EQ(masks, masks_expected) << simd_name(level);
  }
}

TEST(Slides, TablesAtTheEndsOfTheAddressSpace) {
  const uint64_t last = (1ull << (64 - kGranuleBits)) - 1;
  std::vector<uint64_t> entries{0 << 16 | 1, 5 << 16 | 2, (last - 1) << 16 | 1, last << 16 | 2};
  const SlideTable table({0, 0x1000, -0x3000}, entries);
  const Words words{0,
                    1,
                    (1 << kGranuleBits) - 1,
                    5ull << kGranuleBits,
                    ~0ull,
                    last << kGranuleBits,
                    1ull << 63,
                    20ull << kGranuleBits};
  Words page(512, 0x123);
  std::copy(words.begin(), words.end(), page.begin());
  Words expected(512);
  kernels::predict_scalar(table.predictor(), page.data(), expected.data(), kAllLines);
  EXPECT_EQ(expected[0], 0x1000u);
  EXPECT_EQ(expected[3], words[3] - 0x3000);
  EXPECT_EQ(expected[4], words[4] - 0x3000);
  EXPECT_EQ(expected[6], words[6]);
  for (SimdLevel level : simd_levels()) {
    Words predicted(512);
    predict_kernel(level)(table.predictor(), page.data(), predicted.data(), kAllLines);
    EXPECT_EQ(predicted, expected) << simd_name(level);
  }
}

TEST(Slides, HostileTablesAreRefused) {
  const auto refused = [](std::vector<int64_t> slides, std::vector<uint64_t> entries) {
    try {
      SlideTable table(std::move(slides), std::move(entries));
      return false;
    } catch (const Error& e) {
      return e.code == Code::corrupt;
    }
  };
  EXPECT_TRUE(refused({}, {}));
  EXPECT_TRUE(refused({4096}, {}));
  EXPECT_TRUE(refused({0, 1}, {7 << 16 | 2}));
  EXPECT_TRUE(refused({0, 1}, {7 << 16 | 1, 7 << 16 | 1}));
  EXPECT_TRUE(refused({0, 1}, {7 << 16 | 1, 6 << 16 | 1}));
  EXPECT_TRUE(refused({0, 1}, {(1ull << 47) << 16 | 1}));
  EXPECT_TRUE(refused(std::vector<int64_t>(kMaxSlides + 1), {}));
  std::vector<uint64_t> wide;  // nine far clusters, of which two must share a segment
  for (uint64_t i = 0; i < 9; ++i) wide.push_back((i << 20) << 16 | 1);
  EXPECT_TRUE(refused({0, 1}, wide));
  EXPECT_FALSE(refused({0, 1}, {7 << 16 | 1}));
}

// --- plan -------------------------------------------------------------------------------------------------

TEST(WindowPlan, FindsShiftedWindowsAndContinuations) {
  const Words base = testing::heap_like(12, 8);
  const AddressSpace space{{{testing::kHeap, testing::kHeap + testing::kRegionBytes}}, false};
  Words target(base.begin() + 6, base.begin() + 6 + 10 * 512);  // shifted by 48 bytes
  Random random(3);
  for (size_t i = 3 * 512; i < 4 * 512; ++i) target[i] = random.next();  // nothing of page 3 is known
  std::fill_n(target.begin() + 7 * 512, 512, 0);
  FingerprintIndex index;
  const Fingerprints of_base = fingerprint_pages(bytes_of(base), space, 8);
  index.insert(5, of_base.hashes, of_base.positions, 8);
  const Fingerprints fp = fingerprint_pages(bytes_of(target), space, 8);
  const WindowPlan plan = plan_windows(10, fp, index.lookup(fp.hashes, 8));
  EXPECT_EQ(plan.base_ids(), (std::vector<uint64_t>{5}));
  for (uint64_t page = 0; page < 10; ++page) {
    if (page == 7) {
      EXPECT_EQ(plan.windows(page)[0], kNoWindow);
    } else {
      EXPECT_EQ(plan.windows(page)[0], pack_window(0, page * kUnitsPerPage + 3)) << page;
    }
  }
  EXPECT_EQ(plan.uncovered_pages(4), (std::vector<uint64_t>{3}));
  EXPECT_EQ(plan.covered_pages(), 9u);
}

TEST(WindowPlan, RefusesArgumentsOfDifferentImages) {
  const Fingerprints fp = fingerprint_pages(bytes_of(testing::heap_like(2, 1)), {}, 4);
  EXPECT_THROW(plan_windows(3, fp, Locations(2, 4)), Error);
  EXPECT_THROW(plan_windows(2, fp, Locations(3, 4)), Error);
  EXPECT_THROW(plan_windows(2, fp, Locations(2, 8)), Error);
}

}  // namespace
}  // namespace medes
