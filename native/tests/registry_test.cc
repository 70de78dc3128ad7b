#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "common/error.h"
#include "registry/fingerprint_index.h"
#include "tests/engine_test_util.h"

namespace medes {
namespace {

using testing::Random;

constexpr uint32_t kSamples = 8;

struct BaseHashes {
  std::vector<uint64_t> hashes;
  std::vector<uint8_t> positions;
};

BaseHashes random_base(size_t pages, uint64_t seed) {
  Random random(seed);
  BaseHashes out;
  for (size_t i = 0; i < pages * kSamples; ++i) {
    out.hashes.push_back(random.next() | 1);
    out.positions.push_back(static_cast<uint8_t>(random.below(253)));
  }
  return out;
}

size_t open_pages(const FingerprintIndex& index, const BaseHashes& of) {
  return index.lookup(of.hashes, kSamples).open_pages(of.hashes, 1).size();
}

TEST(FingerprintIndex, FindsWhatWasInserted) {
  FingerprintIndex index;
  const BaseHashes a = random_base(500, 1), b = random_base(300, 2);
  index.insert(77, a.hashes, a.positions, kSamples);
  index.insert(0xffff'ffff'ffff'fff0, b.hashes, b.positions, kSamples);
  const Locations found = index.lookup(b.hashes, kSamples);
  ASSERT_EQ(found.base_ids(), (std::vector<uint64_t>{0xffff'ffff'ffff'fff0}));
  for (uint64_t page = 0; page < 300; ++page) {
    const auto places = found.of_page(page);
    for (uint32_t s = 0; s < kSamples; ++s) {
      const Location l = unpack_location(places[s * kMaxLocations]);
      EXPECT_EQ(l.page, page);
      EXPECT_EQ(l.position, b.positions[page * kSamples + s]);
      EXPECT_EQ(l.slot, 0u);
    }
  }
  EXPECT_EQ(found.open_pages(b.hashes, 1).size(), 0u);
  const BaseHashes other = random_base(300, 3);
  EXPECT_EQ(open_pages(index, other), 300u);
}

TEST(FingerprintIndex, KeepsTwoLocationsAHash) {
  FingerprintIndex index;
  const BaseHashes a = random_base(10, 1);
  for (uint64_t id : {1, 2, 3}) index.insert(id, a.hashes, a.positions, kSamples);
  EXPECT_EQ(index.stats().hashes, 2 * a.hashes.size());
  const Locations found = index.lookup(a.hashes, kSamples);
  EXPECT_EQ(found.base_ids(), (std::vector<uint64_t>{1, 2}));
}

TEST(FingerprintIndex, RetireForgetsAndMakesRoom) {
  FingerprintIndex index;
  const BaseHashes a = random_base(2000, 1), b = random_base(2000, 2);
  index.insert(1, a.hashes, a.positions, kSamples);
  index.insert(2, b.hashes, b.positions, kSamples);
  const uint64_t bytes = index.stats().bytes;
  EXPECT_TRUE(index.retire(1));
  EXPECT_FALSE(index.retire(1));
  EXPECT_EQ(index.base_ids(), (std::vector<uint64_t>{2}));
  EXPECT_EQ(open_pages(index, a), 2000u);
  EXPECT_EQ(open_pages(index, b), 0u);
  EXPECT_LT(index.stats().bytes, bytes * 3 / 4);
  index.insert(3, a.hashes, a.positions, kSamples);
  EXPECT_EQ(index.lookup(a.hashes, kSamples).base_ids(), (std::vector<uint64_t>{3}));
}

TEST(FingerprintIndex, StaysBelow150BytesABasePage) {
  FingerprintIndex index;
  for (uint64_t id = 1; id <= 12; ++id) {  // sizes that end anywhere between two growths
    const BaseHashes b = random_base(1000 + id * 777, id);
    index.insert(id, b.hashes, b.positions, kSamples);
    const IndexStats s = index.stats();
    EXPECT_LE(s.bytes, s.base_pages * 150 + 8192) << id;
  }
}

TEST(FingerprintIndex, RefusesBadArguments) {
  FingerprintIndex index;
  const BaseHashes a = random_base(4, 1);
  index.insert(1, a.hashes, a.positions, kSamples);
  try {
    index.insert(1, a.hashes, a.positions, kSamples);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Code::already_exists);
  }
  EXPECT_THROW(index.insert(2, a.hashes, std::span(a.positions).first(3), kSamples), Error);
  EXPECT_THROW(index.insert(2, a.hashes, a.positions, 0), Error);
  EXPECT_THROW(index.insert(2, a.hashes, a.positions, 17), Error);
  EXPECT_THROW(index.lookup(std::span(a.hashes).first(5), kSamples), Error);
  EXPECT_EQ(index.lookup({}, kSamples).page_count(), 0u);
}

TEST(FingerprintIndex, LookupsRunBesideInserts) {
  FingerprintIndex index;
  const BaseHashes fixed = random_base(200, 99);
  index.insert(1000, fixed.hashes, fixed.positions, kSamples);
  std::thread writer([&index] {
    for (uint64_t id = 1; id <= 20; ++id) {
      const BaseHashes b = random_base(50, id);
      index.insert(id, b.hashes, b.positions, kSamples);
      if (id % 2 == 0) index.retire(id);
    }
  });
  for (int i = 0; i < 50; ++i) EXPECT_EQ(open_pages(index, fixed), 0u);
  writer.join();
  EXPECT_EQ(index.base_ids().size(), 11u);
}

TEST(Locations, MergeFillsFreePlacesAndDropsNonsense) {
  Locations a(2, 1);
  const std::vector<uint64_t> first{pack_location(1, 5, 3), kNoLocation, kNoLocation, kNoLocation};
  const std::vector<uint64_t> both{0, 1};
  a.merge(first, std::vector<uint64_t>{10, 11}, both);
  EXPECT_EQ(a.base_ids(), (std::vector<uint64_t>{11}));
  const std::vector<uint64_t> second{pack_location(0, 5, 3), pack_location(0, 9, 0), pack_location(7, 1, 1),
                                     pack_location(1, 2, 254)};
  a.merge(second, std::vector<uint64_t>{11, 12}, both);
  EXPECT_EQ(a.of_page(0)[0], pack_location(0, 5, 3));  // already there: not entered twice
  EXPECT_EQ(a.of_page(0)[1], pack_location(0, 9, 0));
  EXPECT_EQ(a.located(1), 0u);  // slot 7 is unknown, position 254 does not exist
  EXPECT_EQ(a.open_pages(std::vector<uint64_t>{7, 7}, 1), (std::vector<uint64_t>{1}));
  EXPECT_TRUE(a.open_pages(std::vector<uint64_t>{7, 0}, 1).empty());  // a page without samples wants none
  EXPECT_THROW(a.merge(std::vector<uint64_t>(3), std::vector<uint64_t>{}, both), Error);
  const std::vector<uint64_t> of_last{pack_location(0, 8, 2), kNoLocation};
  const std::vector<uint64_t> last{1}, beyond{2};
  a.merge(of_last, std::vector<uint64_t>{11}, last);
  EXPECT_EQ(a.of_page(1)[0], pack_location(0, 8, 2));
  EXPECT_THROW(a.merge(second, std::vector<uint64_t>{11, 12}, last), Error);
  EXPECT_THROW(a.merge(of_last, std::vector<uint64_t>{11}, beyond), Error);
}

}  // namespace
}  // namespace medes
