#include "serving/call_log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "serving/mapping_change.h"

namespace medes {
namespace {

// A pipe in the place of a userfaultfd: what is written is what the kernel would tell.
class CallLogTest : public testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    uffd = Uffd(UniqueFd(ends[0]));
    kernel = UniqueFd(ends[1]);
  }
  void tell(uint8_t event, uint64_t start = 0, uint64_t end = 0) {
    uffd_msg m{};
    m.event = event;
    m.arg.remove = {start, end};
    ASSERT_EQ(write(kernel.get(), &m, sizeof m), static_cast<ssize_t>(sizeof m));
  }
  size_t read(CallLog& log, size_t most = 64) {
    std::vector<uffd_msg> out(most);
    return log.read(uffd, out);
  }
  // What an agent finds that comes after the one before was killed.
  std::optional<std::vector<uint64_t>> found() {
    CallLog next;
    next.keep_in(record);
    const auto left = next.take_left();
    if (!left) return std::nullopt;
    std::vector<uint64_t> starts;
    for (const auto& l : *left) starts.push_back(l.message.arg.remove.start);
    return starts;
  }
  using Starts = std::vector<uint64_t>;
  Uffd uffd;
  UniqueFd kernel;
  ChangeRecord record;
};

TEST_F(CallLogTest, CallsStayUntilTheyAreBooked) {
  CallLog log;
  log.keep_in(record);
  EXPECT_EQ(found(), Starts{});
  tell(UFFD_EVENT_UNMAP, 1);
  tell(UFFD_EVENT_REMOVE, 2);
  EXPECT_EQ(read(log), 2u);
  EXPECT_EQ(read(log), 0u);
  tell(UFFD_EVENT_UNMAP, 3);
  EXPECT_EQ(read(log), 1u);
  log.decide(ChangeRecord::together);
  EXPECT_EQ(found(), (Starts{1, 2, 3}));
  EXPECT_EQ(log.left_order(), ChangeRecord::together);
  log.commit(std::nullopt);
  EXPECT_EQ(found(), Starts{});
  tell(UFFD_EVENT_UNMAP, 4);
  read(log);
  EXPECT_EQ(found(), Starts{4}) << "the next set is alone in the log";
  EXPECT_EQ(log.left_order(), ChangeRecord::open);
}

TEST_F(CallLogTest, FaultsAreNotKept) {
  CallLog log;
  log.keep_in(record);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 60; ++i) tell(UFFD_EVENT_PAGEFAULT, 9);
    EXPECT_EQ(read(log), 60u);
  }
  EXPECT_EQ(found(), Starts{});
  tell(UFFD_EVENT_UNMAP, 1);
  read(log);
  EXPECT_EQ(found(), Starts{1});
}

TEST_F(CallLogTest, AnAgentAfterTheNextFindsWhatBothHadRead) {
  CallLog first;
  first.keep_in(record);
  tell(UFFD_EVENT_UNMAP, 1);
  read(first);
  CallLog second;
  second.keep_in(record);
  ASSERT_EQ(second.take_left()->size(), 1u);
  tell(UFFD_EVENT_UNMAP, 2);
  read(second);
  EXPECT_EQ(found(), (Starts{1, 2}));
}

TEST_F(CallLogTest, WhatDoesNotFitIsSaidToBeUnknown) {
  CallLog log;
  log.keep_in(record);
  for (uint64_t i = 0; i < ChangeRecord::kMaxMessages; ++i) tell(UFFD_EVENT_UNMAP, i);
  EXPECT_EQ(read(log), ChangeRecord::kMaxMessages);
  EXPECT_TRUE(found());
  tell(UFFD_EVENT_UNMAP, 1000);
  EXPECT_EQ(read(log), 1u) << "it is read all the same";
  EXPECT_FALSE(found());
  log.commit(std::nullopt);
  EXPECT_EQ(found(), Starts{});
}

TEST_F(CallLogTest, TheDriversOwnAreLeftOut) {
  CallLog log;
  log.keep_in(record);
  for (uint64_t i = 1; i <= 4; ++i) tell(UFFD_EVENT_REMOVE, i);
  std::vector<uffd_msg> out(64);
  size_t kept = 0;
  EXPECT_EQ(log.read_some(uffd, out, kept, [](const uffd_msg& m) { return m.arg.remove.start % 2 == 0; }),
            4u);
  EXPECT_EQ(kept, 2u);
  EXPECT_EQ(found(), (Starts{2, 4}));
}

TEST_F(CallLogTest, MovesChangeWithTheSetOrNotAtAll) {
  CallLog log;
  log.keep_in(record);
  EXPECT_TRUE(log.untouched());
  EXPECT_TRUE(log.moves()->empty());
  log.commit(std::vector<MovedPages>{{0x1000, 0x9000, 0x1000}});
  EXPECT_FALSE(log.untouched());
  log.commit(std::nullopt);
  ASSERT_EQ(log.moves()->size(), 1u);
  EXPECT_EQ((*log.moves())[0].address, 0x9000u);
  log.commit(std::vector<MovedPages>{});
  EXPECT_TRUE(log.moves()->empty());
  log.commit(std::vector<MovedPages>(ChangeRecord::kMaxMoves, {0x1000, 0x9000, 0x1000}));
  EXPECT_EQ(log.moves()->size(), ChangeRecord::kMaxMoves);
  log.commit(std::vector<MovedPages>(ChangeRecord::kMaxMoves + 5, {0x1000, 0x9000, 0x1000}));
  EXPECT_FALSE(log.moves());
  log.commit(std::vector<MovedPages>{{0x1000, 0x9008, 0x1000}});
  EXPECT_FALSE(log.moves()) << "not of whole pages";
  log.commit(std::vector<MovedPages>{{0x1000, 0x9000, ~0xfffull}});
  EXPECT_FALSE(log.moves()) << "longer than memory";
  log.commit(std::vector<MovedPages>{{0x1000, 0x9000, 0}});
  EXPECT_FALSE(log.moves()) << "of nothing";
}

TEST(Independence, IsOfAddressesAndOrder) {
  using Kind = MappingChange::Kind;
  const MappingChange move{Kind::move, 0x1000, 0x3000, 0x9000}, source{Kind::unmap, 0x1000, 0x3000, 0};
  const MappingChange target{Kind::unmap, 0x9000, 0xb000, 0}, other{Kind::discard, 0x3000, 0x9000, 0};
  const auto independent_of = [](std::vector<MappingChange> changes) { return independent(changes); };
  EXPECT_TRUE(independent_of({}));
  EXPECT_TRUE(independent_of({move, other}));
  EXPECT_TRUE(independent_of({target, move, source})) << "what one mremap tells";
  EXPECT_FALSE(independent_of({source, move}));
  EXPECT_FALSE(independent_of({move, target}));
  EXPECT_FALSE(independent_of({other, {Kind::unmap, 0x8000, 0xa000, 0}}));
  EXPECT_FALSE(independent_of({move, {Kind::move, 0xa000, 0xb000, 0x20000}}));
}

}  // namespace
}  // namespace medes
