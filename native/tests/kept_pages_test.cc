#include "bases/kept_pages.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace medes {
namespace {

using Page = KeptPages::Page;

std::vector<std::byte> page_of(int value) { return std::vector<std::byte>(kPageBytes, std::byte(value)); }

Extent at(uint64_t offset) { return {0, static_cast<uint32_t>(kPageBytes), offset}; }

TEST(KeptPages, AnExtentIsThereWithAllItsPages) {
  KeptPages kept(16 * kPageBytes);
  const auto one = page_of(1), two = page_of(2);
  kept.add("red", 7, 10, std::vector<Page>{{3, one.data()}, {4, two.data()}, {99, one.data()}});
  const auto base = kept.find("red", 7, 10);
  ASSERT_TRUE(base);
  EXPECT_TRUE(base->has(at(3 * kPageBytes)));
  EXPECT_TRUE(base->has(at(3 * kPageBytes + 16)));
  EXPECT_FALSE(base->has(at(4 * kPageBytes + 16))) << "it reaches into a page that is not there";
  EXPECT_FALSE(base->has(at(2 * kPageBytes + 16)));
  EXPECT_FALSE(base->has(at(99 * kPageBytes))) << "outside the base";
  EXPECT_EQ(base->bytes()[3 * kPageBytes], std::byte(1));
  EXPECT_EQ(base->bytes()[4 * kPageBytes], std::byte(2));
  EXPECT_EQ(kept.bytes(), 2 * kPageBytes);
}

TEST(KeptPages, AnotherDomainFindsNothing) {
  KeptPages kept(16 * kPageBytes);
  const auto one = page_of(1);
  kept.add("red", 7, 10, std::vector<Page>{{3, one.data()}});
  EXPECT_FALSE(kept.find("blue", 7, 10));
  EXPECT_FALSE(kept.find("red", 8, 10));
  EXPECT_FALSE(kept.find("red", 7, 11)) << "another base than the one that was kept";
}

TEST(KeptPages, TheLimitHoldsAndTheLeastRecentlyUsedBaseGoes) {
  KeptPages kept(4 * kPageBytes);
  const auto one = page_of(1);
  const std::vector<Page> two_pages{{0, one.data()}, {1, one.data()}};
  kept.add("red", 1, 10, two_pages);
  kept.add("red", 2, 10, two_pages);
  EXPECT_TRUE(kept.find("red", 1, 10));
  kept.add("red", 3, 10, two_pages);
  EXPECT_EQ(kept.bytes(), 4 * kPageBytes);
  EXPECT_TRUE(kept.find("red", 1, 10));
  EXPECT_FALSE(kept.find("red", 2, 10));
  std::vector<Page> many;
  for (uint64_t page = 0; page < 9; ++page) many.push_back({page, one.data()});
  kept.add("red", 4, 10, many);
  EXPECT_EQ(kept.bytes(), 4 * kPageBytes) << "what fits of it, and nothing else";
  kept.add("red", 4, 10, many);
  EXPECT_EQ(kept.bytes(), 4 * kPageBytes) << "what is there is not paid for again";
}

TEST(KeptPages, WhoReadsADroppedBaseGoesOn) {
  KeptPages kept(4 * kPageBytes);
  const auto one = page_of(1);
  kept.add("red", 1, 10, std::vector<Page>{{0, one.data()}});
  kept.add("blue", 1, 10, std::vector<Page>{{0, one.data()}});
  const auto reading = kept.find("red", 1, 10);
  kept.drop(1);
  EXPECT_FALSE(kept.find("red", 1, 10));
  EXPECT_FALSE(kept.find("blue", 1, 10));
  EXPECT_EQ(kept.bytes(), 0u);
  EXPECT_EQ(std::memcmp(reading->bytes().data(), one.data(), kPageBytes), 0);
}

}  // namespace
}  // namespace medes
