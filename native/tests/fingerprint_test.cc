#include "codec/fingerprint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>

#include "codec/kernel.h"
#include "codec/murmur3.h"
#include "common/error.h"
#include "tests/engine_test_util.h"

namespace medes {
namespace {

using testing::bytes_of;
using testing::Random;
using testing::Words;

AddressSpace two_regions() {
  return {{{testing::kHeap, testing::kHeap + testing::kRegionBytes},
           {testing::kMapped, testing::kMapped + testing::kRegionBytes}},
          false};
}

// The definition in fingerprint.h, as plainly as it can be written.
struct Sample {
  uint64_t hash;
  uint8_t position;
  bool operator==(const Sample&) const = default;
};
std::vector<Sample> by_definition(const uint64_t* page, const AddressSpace& space, uint32_t k) {
  Words n(page, page + 512);
  for (uint64_t& w : n) {
    for (const AddressRange& r : pointer_ranges(space)) {
      if (w >= r.begin && w < r.end) {
        w = (w & 0xfff) | 1ull << 62;
        break;
      }
    }
  }
  const auto block = [&n](size_t b) {
    const auto half = [](uint64_t w, uint32_t low, uint32_t high) {
      return uint64_t{static_cast<uint32_t>(static_cast<uint32_t>(w) + low)} *
             static_cast<uint32_t>(static_cast<uint32_t>(w >> 32) + high);
    };
    const uint64_t f = half(n[2 * b], fp::kK0, fp::kK1) + half(n[2 * b + 1], fp::kK2, fp::kK3);
    return static_cast<uint32_t>(f) ^ static_cast<uint32_t>(f >> 32);
  };
  std::map<uint32_t, uint32_t> first_position;  // 24-bit order → position
  for (uint32_t p = 0; p < 253; ++p) {
    if (std::all_of(n.begin() + 2 * p, n.begin() + 2 * p + 8, [](uint64_t w) { return w == 0; })) continue;
    const uint32_t s =
        block(p) ^ std::rotl(block(p + 1), 7) ^ std::rotl(block(p + 2), 15) ^ std::rotl(block(p + 3), 23);
    first_position.try_emplace((s * fp::kK4) >> 8, p);
  }
  std::vector<Sample> out;
  for (const auto& [order, p] : first_position) {
    if (out.size() == k) break;
    out.push_back(
        {chunk_hash(reinterpret_cast<const std::byte*>(n.data() + 2 * p)), static_cast<uint8_t>(p)});
  }
  out.resize(k, {0, 0});
  return out;
}

Words awkward_pages() {
  Words words = testing::heap_like(24, 7);
  Random random(11);
  const auto page = [&words](size_t i) { return words.data() + i * 512; };
  std::fill_n(page(0), 512, 0);                   // nothing
  std::fill_n(page(1), 512, 0x0101010101010101);  // one window, everywhere
  std::fill_n(page(2), 512, 0);
  page(2)[511] = 1;  // the last word alone
  std::fill_n(page(3), 512, 0);
  page(3)[0] = 1;                                       // the first word alone
  for (size_t i = 0; i < 512; ++i) page(4)[i] = i % 4;  // period of two blocks
  for (size_t i = 0; i < 512; ++i) page(5)[i] = random.next();
  for (size_t i = 0; i < 512; ++i)
    page(6)[i] = testing::kHeap - 1 + i % 2 * testing::kRegionBytes;  // range ends
  for (size_t i = 0; i < 512; ++i) page(7)[i] = ~0ull - i;
  return words;
}

TEST(Murmur3, KnownValues) {
  const std::string text = "The quick brown fox jumps over the lazy dog";
  const Hash128 h = murmur3_x64_128(std::as_bytes(std::span(text)), 0);
  EXPECT_EQ(h.low, 0xe34bbc7bbc071b6cull);
  EXPECT_EQ(h.high, 0x7a433ca9c49a9347ull);
  EXPECT_EQ(murmur3_x64_128({}, 0).low, 0u);
}

TEST(Fingerprint, EveryLevelFollowsTheDefinition) {
  const Words words = awkward_pages();
  for (const AddressSpace& space : {two_regions(), AddressSpace{{}, true}, AddressSpace{{}, false}}) {
    for (uint32_t k : {1u, 4u, 8u, 16u}) {
      for (SimdLevel level : simd_levels()) {
        const Fingerprints f = fingerprint_pages(bytes_of(words), space, k, level);
        ASSERT_EQ(f.page_count, words.size() / 512);
        for (size_t page = 0; page < f.page_count; ++page) {
          const auto expected = by_definition(words.data() + page * 512, space, k);
          for (size_t i = 0; i < k; ++i) {
            const Sample got{f.hashes[page * k + i], f.positions[page * k + i]};
            ASSERT_EQ(got, expected[i])
                << simd_name(level) << " page " << page << " sample " << i << " k " << k;
          }
        }
      }
    }
  }
}

TEST(Fingerprint, SurvivesSlides) {
  const Words a = testing::heap_like(8, 3);
  const Words b = testing::moved(a, 0x11000, -0x7000, 0, 0);
  AddressSpace moved_space = two_regions();
  moved_space.ranges[0].begin += 0x11000;
  moved_space.ranges[0].end += 0x11000;
  moved_space.ranges[1].begin -= 0x7000;
  moved_space.ranges[1].end -= 0x7000;
  EXPECT_EQ(fingerprint_pages(bytes_of(a), two_regions(), 8).hashes,
            fingerprint_pages(bytes_of(b), moved_space, 8).hashes);
}

TEST(Fingerprint, KernelPointersNormaliseWithoutMaps) {
  Words a = testing::heap_like(4, 5);
  for (size_t i = 0; i < a.size(); i += 3) a[i] = 0xffff'8880'0000'0000ull + i * 64;
  Words b = a;
  for (size_t i = 0; i < b.size(); i += 3) b[i] += 0x1'2340'0000ull;
  const AddressSpace guest{{}, true};
  EXPECT_EQ(fingerprint_pages(bytes_of(a), guest, 8).hashes, fingerprint_pages(bytes_of(b), guest, 8).hashes);
}

TEST(Fingerprint, RefusesBadArguments) {
  const Words words(512);
  for (uint32_t k : {0u, 17u}) {
    try {
      fingerprint_pages(bytes_of(words), {}, k);
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Code::invalid_argument);
    }
  }
  EXPECT_THROW(fingerprint_pages(bytes_of(words).first(4095), {}, 8), Error);
  AddressSpace many;
  for (uint64_t i = 0; i < 9; ++i) many.ranges.push_back({i << 40, (i << 40) + 4096});
  EXPECT_THROW(fingerprint_pages(bytes_of(words), many, 8), Error);
}

TEST(Simd, ForcedLevelsNeverFallBack) {
  EXPECT_EQ(parse_simd("best"), best_simd());
  EXPECT_EQ(parse_simd("scalar"), SimdLevel::scalar);
  EXPECT_THROW(parse_simd("neon"), Error);
  for (SimdLevel level : {SimdLevel::avx2, SimdLevel::avx512}) {
    if (level <= best_simd()) {
      EXPECT_EQ(parse_simd(simd_name(level)), level);
    } else {
      try {
        parse_simd(simd_name(level));
        FAIL();
      } catch (const Error& e) {
        EXPECT_EQ(e.code, Code::unsupported);
      }
    }
  }
}

}  // namespace
}  // namespace medes
