#include "bases/base_set.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

namespace medes {
namespace {

using namespace std::chrono_literals;

// Byte i of base b, as every reader of these tests serves it.
std::byte expected(uint64_t base, uint64_t offset) {
  return static_cast<std::byte>((base * 31 + offset * 7 + offset / kPageBytes) & 0xff);
}

class ScriptedReader : public PageReader {
 public:
  struct Batch : ReadBatch {
    bool wait(std::chrono::nanoseconds) override { return true; }
    Code status(size_t i) const override { return codes[i]; }
    Transport carried_by(size_t i) const override { return carriers[i]; }
    std::vector<Code> codes;
    std::vector<Transport> carriers;
  };
  TransportCapabilities capabilities() const override {
    return {Transport::rdma, false, false, kMaxReadBytes, 8192};
  }
  std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) override {
    auto batch = std::make_unique<Batch>();
    std::lock_guard lock(mutex);
    for (const ReadRequest& read : reads) {
      requests.push_back(read);
      batch->codes.push_back(fail_next > 0 ? (--fail_next, Code::peer_unreachable) : Code::ok);
      batch->carriers.push_back(fall_back_next > 0 ? (--fall_back_next, Transport::tcp) : Transport::rdma);
      if (batch->codes.back() != Code::ok) continue;
      for (uint32_t i = 0; i < read.length; ++i)
        read.destination[i] = expected(read.base_id, read.offset + i);
    }
    return batch;
  }
  TransportStats stats() const override { return {}; }
  void close() override {}

  std::mutex mutex;
  std::vector<ReadRequest> requests;
  int fail_next = 0, fall_back_next = 0;
};

bool holds(const BaseSet& set, const Extent& extent) {
  const BaseView view = set.view(extent.base_slot);
  for (uint64_t i = extent.offset; i < extent.offset + extent.length; ++i)
    if (view.bytes[i] != expected(view.base_id, i)) return false;
  return true;
}

TEST(BaseSet, CountsBytesByWhatCarriedThem) {
  auto one = std::make_shared<ScriptedReader>(), other = std::make_shared<ScriptedReader>();
  one->fall_back_next = 1;
  other->fall_back_next = 100;
  BaseSet set;
  const uint32_t a = set.add_remote(11, 100, {}, one), b = set.add_remote(12, 100, {}, other);
  const Extent extents[] = {{a, 2 * kPageBytes, 0}, {a, kPageBytes, 4 * kPageBytes}, {b, 4 * kPageBytes, 0}};
  EXPECT_EQ(set.ensure(extents, 1s), Code::ok);
  const BytesByTransport bytes = set.remote_bytes_by_transport();
  EXPECT_EQ(bytes[static_cast<size_t>(Transport::rdma)], kPageBytes);
  EXPECT_EQ(bytes[static_cast<size_t>(Transport::tcp)], 6 * kPageBytes);
  EXPECT_EQ(set.remote_read_bytes(), 7 * kPageBytes);
  EXPECT_EQ(set.remote_pages_read(), 7u);
}

TEST(BaseSet, CoalescesNeighboursAndReadsEachPageOnce) {
  auto reader = std::make_shared<ScriptedReader>();
  BaseSet set;
  const uint32_t a = set.add_remote(11, 100, {}, reader);
  const uint32_t b = set.add_remote(12, 100, {}, reader);
  // A window that straddles pages 3 and 4, page 5 whole, and a piece of base b.
  const std::vector<Extent> extents = {
      {a, 4096, 3 * 4096 + 512}, {a, 4096, 5 * 4096}, {b, 64, 7 * 4096 + 16}, {a, 16, 3 * 4096}};
  ASSERT_EQ(set.ensure(extents, 1s), Code::ok);
  for (const Extent& e : extents) EXPECT_TRUE(holds(set, e));
  ASSERT_EQ(reader->requests.size(), 2u);
  EXPECT_EQ(reader->requests[0].length + reader->requests[1].length, 4u * 4096);
  EXPECT_EQ(set.remote_pages_read(), 4u);
  ASSERT_EQ(set.ensure(extents, 1s), Code::ok);
  EXPECT_EQ(reader->requests.size(), 2u) << "present pages are not read again";
}

TEST(BaseSet, RefusesExtentsOutsideTheBase) {
  BaseSet set;
  const uint32_t a = set.add_remote(1, 2, {}, std::make_shared<ScriptedReader>());
  const std::vector<Extent> past_end = {{a, 4096, 4096 + 16}};
  const std::vector<Extent> overflow = {{a, 16, ~0ull - 7}};
  const std::vector<Extent> no_slot = {{a + 1, 16, 0}};
  EXPECT_EQ(set.ensure(past_end, 1s), Code::invalid_argument);
  EXPECT_EQ(set.ensure(overflow, 1s), Code::invalid_argument);
  EXPECT_EQ(set.ensure(no_slot, 1s), Code::invalid_argument);
  EXPECT_THROW(set.view(7), Error);
  EXPECT_THROW(set.slot_of(99), Error);
  EXPECT_THROW(set.add_remote(2, 0, {}, std::make_shared<ScriptedReader>()), Error);
}

TEST(BaseSet, FailedReadIsReportedAndCanBeRepeated) {
  auto reader = std::make_shared<ScriptedReader>();
  reader->fail_next = 1;
  BaseSet set;
  const uint32_t a = set.add_remote(5, 10, {}, reader);
  const std::vector<Extent> extents = {{a, 4096, 0}, {a, 4096, 4 * 4096}};
  EXPECT_EQ(set.ensure(extents, 1s), Code::peer_unreachable);
  EXPECT_EQ(set.remote_pages_read(), 1u) << "the other read of the batch did arrive";
  ASSERT_EQ(set.ensure(extents, 1s), Code::ok);
  EXPECT_TRUE(holds(set, extents[0]));
  EXPECT_TRUE(holds(set, extents[1]));
}

TEST(BaseSet, ThreadsThatWantTheSamePagesReadThemOnce) {
  auto reader = std::make_shared<ScriptedReader>();
  BaseSet set;
  const uint32_t a = set.add_remote(9, 512, {}, reader);
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (uint64_t page = 0; page + 2 <= 512; page += 1) {
        const std::vector<Extent> extents = {{a, 4096, page * 4096 + 16 * static_cast<uint64_t>(t)}};
        if (set.ensure(extents, 10s) != Code::ok || !holds(set, extents[0])) ++failures;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(set.remote_pages_read(), 512u);
}

TEST(BaseSet, ReadsOfSeveralLoadsOverlap) {
  auto reader = std::make_shared<ScriptedReader>();
  BaseSet set;
  const uint32_t a = set.add_remote(9, 64, {}, reader);
  const std::vector<Extent> first = {{a, 4096, 0}}, second = {{a, 8192, 4096}}, both = {{a, 12288, 0}};
  bool others = false;
  auto one = set.begin(first, others);
  auto two = set.begin(second, others);
  ASSERT_TRUE(one && two);
  EXPECT_FALSE(others);
  EXPECT_EQ(reader->requests.size(), 2u) << "asked for before either was waited for";
  EXPECT_EQ(set.begin(both, others), nullptr) << "all of it is on its way";
  EXPECT_TRUE(others);
  std::thread other([&] {
    EXPECT_EQ(set.ensure(both, 10s), Code::ok);
    EXPECT_TRUE(holds(set, both[0]));
  });
  EXPECT_EQ(one->finish(10s), Code::ok);
  EXPECT_EQ(two->finish(10s), Code::ok);
  other.join();
  EXPECT_EQ(set.remote_pages_read(), 3u) << "each page once";
}

TEST(BaseSet, WhatAnUnfinishedLoadReadIsNotThere) {
  auto reader = std::make_shared<ScriptedReader>();
  BaseSet set;
  const uint32_t a = set.add_remote(9, 64, {}, reader);
  const std::vector<Extent> extents = {{a, 4096, 0}};
  bool others = false;
  set.begin(extents, others).reset();
  EXPECT_EQ(set.remote_pages_read(), 0u);
  ASSERT_EQ(set.ensure(extents, 1s), Code::ok) << "nobody holds its claim any more";
  EXPECT_TRUE(holds(set, extents[0]));
}

TEST(BaseSet, DropRemoteForgetsPages) {
  auto reader = std::make_shared<ScriptedReader>();
  BaseSet set;
  const uint32_t a = set.add_remote(3, 4, {}, reader);
  const std::vector<Extent> extents = {{a, 4096, 0}};
  ASSERT_EQ(set.ensure(extents, 1s), Code::ok);
  set.drop_remote();
  ASSERT_EQ(set.ensure(extents, 1s), Code::ok);
  EXPECT_EQ(set.remote_pages_read(), 2u);
  EXPECT_TRUE(holds(set, extents[0]));
}

TEST(BaseSet, SameBaseKeepsItsSlot) {
  BaseSet set;
  const uint32_t a = set.add_remote(3, 4, {}, std::make_shared<ScriptedReader>());
  EXPECT_EQ(set.add_remote(3, 4, {}, std::make_shared<ScriptedReader>()), a);
  EXPECT_EQ(set.size(), 1u);
  EXPECT_FALSE(set.local(a));
}

}  // namespace
}  // namespace medes
