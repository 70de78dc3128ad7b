// Client and server in one process, also for the sanitizers: threads, dying peers, waiters that give up.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "bases/base_set.h"
#include "store/slab.h"
#include "tests/temporary_folder.h"
#include "transport/failing_reader.h"
#include "transport/retry_reader.h"
#include "transport/tcp/page_server.h"
#include "transport/tcp/tcp_reader.h"

namespace medes {
namespace {

using namespace std::chrono_literals;

class TcpTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kBase = 5, kPages = 1024;

  void SetUp() override {
    data.resize(kPages * kPageBytes);
    std::mt19937_64 random(3);
    for (size_t i = 0; i < data.size(); i += 8) {
      const uint64_t value = random();
      std::memcpy(data.data() + i, &value, 8);
    }
    slab = Slab::create((folder.path() / "a.slab").string(), kBase,
                        *MemoryImage::from_buffer(data, 0, {{}, true}), {});
    token.fill(std::byte{7});
    serve();
  }
  void serve() {
    server = std::make_unique<PageServer>("127.0.0.1", 0, nullptr);
    server->slabs().add(slab, "d");
    server->slabs().grant(token, "d", "test");
  }
  std::shared_ptr<TcpReader> reader(size_t streams = 1) {
    TcpReaderOptions options;
    options.address = server->address();
    options.token = token;
    options.streams = streams;
    return std::make_shared<TcpReader>(std::move(options));
  }
  bool same(const std::vector<std::byte>& got, uint64_t offset) const {
    return std::memcmp(got.data(), data.data() + offset, got.size()) == 0;
  }

  const testing::TemporaryFolder folder;
  std::vector<std::byte> data;
  std::shared_ptr<Slab> slab;
  Token token{};
  std::unique_ptr<PageServer> server;
};

TEST_F(TcpTest, ThreadsAndStreams) {
  for (size_t streams : {size_t{1}, size_t{3}}) {
    auto shared = reader(streams);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&, t] {
        std::mt19937 random(t);
        for (int round = 0; round < 40; ++round) {
          std::vector<std::byte> buffer(64 * kPageBytes);
          std::vector<ReadRequest> reads;
          std::vector<uint64_t> offsets;
          for (int i = 0; i < 64; ++i) {
            offsets.push_back(random() % (kPages - 1) * kPageBytes + random() % 256 * 16);
            reads.push_back({kBase, offsets.back(), kPageBytes, buffer.data() + i * kPageBytes});
          }
          if (shared->read(reads, 20s) != Code::ok) ++wrong;
          for (int i = 0; i < 64; ++i)
            if (std::memcmp(buffer.data() + i * kPageBytes, data.data() + offsets[i], kPageBytes)) ++wrong;
        }
      });
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0) << streams << " streams";
  }
}

TEST_F(TcpTest, ManyBatchesAreInFlightBeforeTheFirstIsWaitedFor) {
  auto r = reader();
  std::vector<std::vector<std::byte>> buffers;
  std::vector<std::unique_ptr<ReadBatch>> batches;
  for (uint64_t i = 0; i < 300; ++i) {
    buffers.emplace_back(32 * kPageBytes);
    const ReadRequest read{kBase, i % 30 * 32 * kPageBytes, 32 * kPageBytes, buffers.back().data()};
    batches.push_back(r->submit({&read, 1}));
  }
  for (uint64_t i = 300; i-- > 0;) {  // last first: whoever waits moves everybody's bytes
    ASSERT_TRUE(batches[i]->wait(20s));
    ASSERT_EQ(batches[i]->status(0), Code::ok);
    EXPECT_TRUE(same(buffers[i], i % 30 * 32 * kPageBytes));
  }
}

TEST_F(TcpTest, FailedReadsAmongOthersShiftNobodysBytes) {
  auto r = reader();
  std::mt19937 random(9);
  for (int round = 0; round < 50; ++round) {
    struct Flight {
      std::vector<std::byte> memory = std::vector<std::byte>(24 * kPageBytes);
      std::vector<ReadRequest> reads;
      std::unique_ptr<ReadBatch> batch;
    };
    std::vector<Flight> flights(3);
    for (Flight& flight : flights) {
      for (uint64_t i = 0; i < 8; ++i) {
        const uint64_t base = random() % 3 == 0 ? kBase + 1 : kBase;  // there is no base kBase + 1
        const auto length = static_cast<uint32_t>((1 + random() % 3) * kPageBytes - random() % 2 * 16);
        flight.reads.push_back(
            {base, random() % 1000 * kPageBytes, length, flight.memory.data() + i * 3 * kPageBytes});
      }
      flight.batch = r->submit(flight.reads);
    }
    for (Flight& flight : flights) {
      ASSERT_TRUE(flight.batch->wait(20s));
      for (size_t i = 0; i < flight.reads.size(); ++i) {
        const ReadRequest& read = flight.reads[i];
        ASSERT_EQ(flight.batch->status(i), read.base_id == kBase ? Code::ok : Code::not_found);
        if (read.base_id == kBase)
          ASSERT_EQ(std::memcmp(read.destination, data.data() + read.offset, read.length), 0);
      }
    }
  }
}

TEST_F(TcpTest, AbandonedBatchWritesNothingMore) {
  auto r = reader();
  for (int round = 0; round < 20; ++round) {
    auto buffer = std::make_unique<std::vector<std::byte>>(kMaxReadBytes / 4);
    const ReadRequest read{kBase, 0, static_cast<uint32_t>(buffer->size()), buffer->data()};
    {
      auto batch = r->submit({&read, 1});
      batch->wait(std::chrono::microseconds(50 * round));
    }
    buffer.reset();  // under the address sanitizer a late write would be caught
    std::vector<std::byte> next(kPageBytes);
    const ReadRequest after{kBase, kPageBytes, kPageBytes, next.data()};
    ASSERT_EQ(r->read({&after, 1}, 20s), Code::ok);
    EXPECT_TRUE(same(next, kPageBytes));
  }
}

TEST_F(TcpTest, PeerDeathEndsBatchesAndRetryFindsTheNextServer) {
  auto inner = reader();
  auto r = make_retry_reader(inner, {.attempts = 6});
  std::vector<std::byte> buffer(kPageBytes);
  const ReadRequest read{kBase, 0, kPageBytes, buffer.data()};
  ASSERT_EQ(r->read({&read, 1}, 5s), Code::ok);
  server->close();
  EXPECT_EQ(inner->read({&read, 1}, 5s), Code::peer_unreachable);
  serve();
  r->readdress(server->address(), token);
  EXPECT_EQ(r->read({&read, 1}, 5s), Code::ok);
  EXPECT_GE(r->stats().reconnects, 1u);
}

TEST_F(TcpTest, BaseSetOverAFaultyPeerEndsWithTheRightBytes) {
  auto faulty =
      make_failing_reader(reader(), {.seed = 11, .fail = 0.05, .delay_max_us = 200, .reorder = true});
  BaseSet set;
  const uint32_t slot =
      set.add_remote(kBase, kPages, {{}, true}, make_retry_reader(faulty, {.attempts = 10}));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint64_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (uint64_t page = t; page + 20 < kPages; page += 20) {
        const std::vector<Extent> extents = {{slot, 20 * kPageBytes, page * kPageBytes}};
        if (set.ensure(extents, 20s) != Code::ok) ++wrong;
        if (std::memcmp(set.view(slot).bytes.data() + page * kPageBytes, data.data() + page * kPageBytes,
                        20 * kPageBytes))
          ++wrong;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(TcpTest, DroppedAndDyingPeers) {
  std::vector<std::byte> buffer(4 * kPageBytes);
  std::vector<ReadRequest> reads;
  for (uint64_t i = 0; i < 4; ++i)
    reads.push_back({kBase, i * kPageBytes, kPageBytes, buffer.data() + i * kPageBytes});
  auto dropping = make_failing_reader(reader(), {.drop = 1.0});
  EXPECT_EQ(dropping->read(reads, 50ms), Code::deadline_exceeded);
  auto dying = make_failing_reader(reader(), {.die_after_reads = 6});
  auto first = dying->submit(reads), second = dying->submit(reads);
  ASSERT_TRUE(first->wait(5s));
  ASSERT_TRUE(second->wait(5s));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(first->status(i), Code::ok);
    EXPECT_EQ(second->status(i), i < 2 ? Code::ok : Code::peer_unreachable)
        << "death in mid-batch, read " << i;
  }
}

}  // namespace
}  // namespace medes
