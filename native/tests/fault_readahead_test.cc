#include "restore/fault_readahead.h"

#include <gtest/gtest.h>

namespace medes {
namespace {

using Pages = std::pair<uint64_t, uint64_t>;

Pages next(FaultReadahead& readahead, uint64_t page) {
  const auto w = readahead.next(page);
  return {w.begin, w.end};
}

TEST(FaultReadahead, ScatteredFaultsBringTheirBlock) {
  FaultReadahead readahead;
  EXPECT_EQ(next(readahead, 1003), Pages(1000, 1008));
  EXPECT_EQ(next(readahead, 5), Pages(0, 8));
  EXPECT_EQ(next(readahead, 500), Pages(496, 504));
  EXPECT_EQ(next(readahead, 990), Pages(984, 992));  // backwards is no walk
}

TEST(FaultReadahead, AWalkDoublesUpToTheMost) {
  FaultReadahead readahead;
  EXPECT_EQ(next(readahead, 7), Pages(0, 8));
  EXPECT_EQ(next(readahead, 8), Pages(8, 24));
  EXPECT_EQ(next(readahead, 24), Pages(24, 56));
  EXPECT_EQ(next(readahead, 56), Pages(56, 120));
  EXPECT_EQ(next(readahead, 120), Pages(120, 184));
}

TEST(FaultReadahead, AStrideMayLeapAsFarAsTheLastWindowWasLong) {
  FaultReadahead readahead;
  EXPECT_EQ(next(readahead, 0), Pages(0, 8));
  EXPECT_EQ(next(readahead, 16), Pages(16, 32));
  EXPECT_EQ(next(readahead, 48), Pages(48, 80));
  EXPECT_EQ(next(readahead, 200), Pages(200, 208));  // another one begins
}

TEST(FaultReadahead, AFaultWithinAWindowUnderWayBringsItsBlockAndLeavesTheWalk) {
  FaultReadahead readahead;
  EXPECT_EQ(next(readahead, 0), Pages(0, 8));
  EXPECT_EQ(next(readahead, 8), Pages(8, 24));
  EXPECT_EQ(next(readahead, 17), Pages(16, 24));
  EXPECT_EQ(next(readahead, 24), Pages(24, 56));
}

TEST(FaultReadahead, WalksAtOnceAreToldApart) {
  FaultReadahead readahead;
  for (uint64_t walk = 0; walk < 16; ++walk) EXPECT_EQ(next(readahead, walk * 10000).second % 10000, 8);
  for (uint64_t walk = 0; walk < 16; ++walk)
    EXPECT_EQ(next(readahead, walk * 10000 + 8), Pages(walk * 10000 + 8, walk * 10000 + 24));
  // A seventeenth takes the place of the oldest.
  EXPECT_EQ(next(readahead, 900000), Pages(900000, 900008));
  EXPECT_EQ(next(readahead, 24), Pages(24, 32));
}

}  // namespace
}  // namespace medes
