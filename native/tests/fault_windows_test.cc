#include "restore/fault_windows.h"

#include <gtest/gtest.h>

namespace medes {
namespace {

using Pages = std::pair<uint64_t, uint64_t>;

Pages next(FaultWindows& windows, uint64_t page) {
  const auto w = windows.next(page);
  return {w.begin, w.end};
}

TEST(FaultWindows, ScatteredFaultsBringTheirBlock) {
  FaultWindows windows;
  EXPECT_EQ(next(windows, 1003), Pages(1000, 1008));
  EXPECT_EQ(next(windows, 5), Pages(0, 8));
  EXPECT_EQ(next(windows, 500), Pages(496, 504));
  EXPECT_EQ(next(windows, 990), Pages(984, 992));  // backwards is no walk
}

TEST(FaultWindows, AWalkDoublesUpToTheMost) {
  FaultWindows windows;
  EXPECT_EQ(next(windows, 7), Pages(0, 8));
  EXPECT_EQ(next(windows, 8), Pages(8, 24));
  EXPECT_EQ(next(windows, 24), Pages(24, 56));
  EXPECT_EQ(next(windows, 56), Pages(56, 120));
  EXPECT_EQ(next(windows, 120), Pages(120, 184));
}

TEST(FaultWindows, AStrideMayLeapAsFarAsTheLastWindowWasLong) {
  FaultWindows windows;
  EXPECT_EQ(next(windows, 0), Pages(0, 8));
  EXPECT_EQ(next(windows, 16), Pages(16, 32));
  EXPECT_EQ(next(windows, 48), Pages(48, 80));
  EXPECT_EQ(next(windows, 200), Pages(200, 208));  // another one begins
}

TEST(FaultWindows, AFaultWithinAWindowUnderWayBringsItsBlockAndLeavesTheWalk) {
  FaultWindows windows;
  EXPECT_EQ(next(windows, 0), Pages(0, 8));
  EXPECT_EQ(next(windows, 8), Pages(8, 24));
  EXPECT_EQ(next(windows, 17), Pages(16, 24));
  EXPECT_EQ(next(windows, 24), Pages(24, 56));
}

TEST(FaultWindows, WalksAtOnceAreToldApart) {
  FaultWindows windows;
  for (uint64_t walk = 0; walk < 16; ++walk) EXPECT_EQ(next(windows, walk * 10000).second % 10000, 8);
  for (uint64_t walk = 0; walk < 16; ++walk)
    EXPECT_EQ(next(windows, walk * 10000 + 8), Pages(walk * 10000 + 8, walk * 10000 + 24));
  // A seventeenth takes the place of the oldest.
  EXPECT_EQ(next(windows, 900000), Pages(900000, 900008));
  EXPECT_EQ(next(windows, 24), Pages(24, 32));
}

}  // namespace
}  // namespace medes
