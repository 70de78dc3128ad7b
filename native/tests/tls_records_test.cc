// The record layer behind the TLS handshake: both ciphers agree, records survive any cutting up, and nothing
// that was damaged, repeated, left out or put in by another comes through.
#include "transport/tls/tls_records.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>

namespace medes {
namespace {

std::vector<uint8_t> random_bytes(size_t n, uint64_t seed) {
  std::mt19937_64 source(seed);
  std::vector<uint8_t> out(n);
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(source());
  return out;
}

TrafficSecret secret_of(uint64_t seed) {
  TrafficSecret out;
  const auto bytes = random_bytes(out.size(), seed);
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return out;
}

iovec whole(const std::vector<uint8_t>& bytes) {
  return {const_cast<uint8_t*>(bytes.data()), bytes.size()};  // an iovec for sealing is only read
}

// `bytes` in parts of so many cipher steps each (0: none), the rest behind them.
std::vector<iovec> in_parts(std::vector<uint8_t>& bytes, size_t n, std::initializer_list<size_t> steps) {
  std::vector<iovec> out;
  size_t at = 0;
  for (const size_t step : steps) {
    if (n - at < step * kGcmStepBytes) break;
    out.push_back({bytes.data() + at, step * kGcmStepBytes});
    at += out.back().iov_len;
  }
  out.push_back({bytes.data() + at, n - at});
  return out;
}

TEST(RecordCipher, BothImplementationsAgreeAtEverySize) {
  if (!has_vector_cipher()) GTEST_SKIP() << "this CPU has no VAES";
  for (size_t i = 0; i < 1700; ++i) {
    const size_t n = i < 1600 ? i : (i - 1599) * 163;
    auto data = random_bytes(n + 1, i + 1);
    const auto key = random_bytes(kGcmKeyBytes, i), header = random_bytes(kRecordHeaderBytes, i + 2),
               nonce_bytes = random_bytes(kGcmNonceBytes, i + 3);
    GcmNonce nonce;
    std::copy(nonce_bytes.begin(), nonce_bytes.end(), nonce.begin());
    const auto vector = make_vector_cipher(key.data()), openssl = make_openssl_cipher(key.data());
    std::vector<uint8_t> one(n + 1 + kGcmTagBytes), other(one.size()), back(n + 1);
    const iovec in{data.data(), n}, out{back.data(), n};
    vector->seal(nonce, header.data(), {&in, 1}, data[n], one.data(), nullptr);
    openssl->seal(nonce, header.data(), {&in, 1}, data[n], other.data(), nullptr);
    ASSERT_EQ(one, other) << n;
    for (RecordCipher* cipher : {vector.get(), openssl.get()}) {
      std::fill(other.begin(), other.end(), uint8_t{0});
      cipher->seal(nonce, header.data(), in_parts(data, n, {1, 0, 2}), data[n], other.data(), back.data());
      ASSERT_EQ(one, other) << n;
      std::fill(back.begin(), back.end(), uint8_t{0});
      ASSERT_TRUE(cipher->open(nonce, header.data(), one.data(), in_parts(back, n, {2, 1, 0, 3}), back[n],
                               data.data()))
          << n;
      ASSERT_EQ(back, data) << n;
    }
    for (RecordCipher* cipher : {vector.get(), openssl.get()}) {
      ASSERT_TRUE(cipher->open(nonce, header.data(), one.data(), {&out, 1}, back[n], nullptr)) << n;
      ASSERT_EQ(back, data) << n;
      auto damaged = one;
      damaged[i % damaged.size()] ^= static_cast<uint8_t>(1 << i % 8);
      ASSERT_FALSE(cipher->open(nonce, header.data(), damaged.data(), {&out, 1}, back[n], nullptr)) << n;
      auto other_header = header;
      other_header[i % kRecordHeaderBytes] ^= 0x10;
      ASSERT_FALSE(cipher->open(nonce, other_header.data(), one.data(), {&out, 1}, back[n], nullptr)) << n;
    }
  }
}

TEST(RecordKeys, ARecordIsTakenOnceAndInItsPlace) {
  const auto data = random_bytes(100, 1);
  const iovec in = whole(data);
  RecordKeys writing(secret_of(1));
  std::vector<std::vector<uint8_t>> records;
  for (int i = 0; i < 3; ++i) {
    records.emplace_back(kRecordOverheadBytes + data.size());
    ASSERT_TRUE(writing.seal({&in, 1}, records.back().data()));
  }
  std::vector<uint8_t> out(data.size());
  auto opens = [&](RecordKeys& keys, size_t record) {
    const iovec into = whole(out);
    return keys.open(records[record].data(), {&into, 1}) == RecordKeys::Opened::data;
  };
  RecordKeys in_order(secret_of(1)), repeated(secret_of(1)), skipped(secret_of(1)), other(secret_of(2));
  EXPECT_TRUE(opens(in_order, 0) && opens(in_order, 1) && opens(in_order, 2));
  EXPECT_TRUE(opens(repeated, 0));
  EXPECT_FALSE(opens(repeated, 0));
  EXPECT_FALSE(opens(skipped, 1));
  EXPECT_FALSE(opens(other, 0));
}

struct Pair {
  std::unique_ptr<Stream> left, right;
  int wire[2];

  explicit Pair(int buffer_bytes = 0) {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, wire), 0);
    for (const int fd : wire)
      if (buffer_bytes) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
    left = tls_record_stream(FileDescriptor(wire[0]), {secret_of(1), secret_of(2)}, "left's peer");
    right = tls_record_stream(FileDescriptor(wire[1]), {secret_of(2), secret_of(1)}, "");
  }
};

TEST(RecordStream, BytesArriveHoweverTheyAreCutUp) {
  const Deadline deadline = Clock::now() + std::chrono::seconds(60);
  for (const int buffer_bytes : {0, 4096}) {
    Pair pair(buffer_bytes);
    EXPECT_EQ(pair.left->peer_node(), "left's peer");
    auto sent = random_bytes(3 << 20, 5);
    std::thread writer([&] {
      std::mt19937_64 source(6);
      std::vector<iovec> parts;
      for (size_t at = 0; at < sent.size();) {
        const size_t n = std::min<size_t>(sent.size() - at, source() % 3 ? source() % 40000 : 4096);
        parts.push_back({sent.data() + at, n});
        at += n;
      }
      EXPECT_TRUE(write_all(*pair.left, parts, deadline));
    });
    std::mt19937_64 source(7);
    std::vector<uint8_t> got(sent.size());
    for (size_t at = 0; at < got.size();) {
      iovec parts[3];
      size_t count = 0;
      for (size_t end = at; count < 3 && end < got.size(); ++count) {
        const size_t n = std::min<size_t>(got.size() - end, 1 + source() % 20000);
        parts[count] = {got.data() + end, n};
        end += n;
      }
      const IoResult result = pair.right->read({parts, count});
      if (result.status == IoStatus::progress)
        at += result.bytes;
      else
        ASSERT_TRUE(result.status == IoStatus::want_read &&
                    wait_ready(pair.right->fd(), result.status, deadline));
    }
    writer.join();
    EXPECT_EQ(got, sent);
    pair.left.reset();
    std::byte rest;
    iovec part{&rest, 1};
    EXPECT_EQ(pair.right->read({&part, 1}).status, IoStatus::closed);
  }
}

TEST(RecordParts, AreCutWhereARecordAndItsCipherEnd) {
  std::vector<uint8_t> memory(100'000);
  const auto at = [&](size_t offset) { return memory.data() + offset; };
  const std::vector<iovec> parts{{at(0), 4096},   {at(20000), 0},     {at(8192), 4096},
                                 {at(30000), 10}, {at(40000), 40000}, {at(90000), kGcmStepBytes}};
  RecordParts cut(parts);
  std::vector<std::vector<size_t>> found;
  while (!cut.ended()) {
    const uint8_t* const ahead = cut.ahead();
    const auto record = cut.next(kRecordDataBytesMax);
    EXPECT_EQ(record[0].iov_base, ahead);
    found.emplace_back();
    for (const iovec& part : record) found.back().push_back(part.iov_len);
  }
  EXPECT_EQ(cut.ahead(), nullptr);
  const size_t tail = 40000 - 2 * kRecordDataBytesMax;
  const std::vector<std::vector<size_t>> expected{
      {4096, 4096, 10}, {kRecordDataBytesMax}, {kRecordDataBytesMax}, {tail}, {kGcmStepBytes}};
  EXPECT_EQ(found, expected);

  RecordParts exact(parts);
  EXPECT_EQ(exact.exactly(8203).size(), 0U);  // the cipher ends at 8202
  EXPECT_EQ(exact.exactly(8202).size(), 3U);
  EXPECT_EQ(exact.fill(std::vector<uint8_t>(40001, 7)), 40001U);
  EXPECT_EQ(memory[40000] + memory[79999] + memory[90000], 21);
  EXPECT_EQ(memory[90001], 0);
  EXPECT_EQ(exact.exactly(kGcmStepBytes).size(), 0U);  // there is less
  EXPECT_EQ(exact.exactly(kGcmStepBytes - 1).size(), 1U);
}

TEST(RecordStream, ScatteredPagesShareRecords) {
  Pair pair;
  constexpr size_t kPages = 8;
  auto sent = random_bytes(2 * kPages * 4096, 5);
  std::vector<iovec> parts;
  for (size_t i = 0; i < kPages; ++i) parts.push_back({sent.data() + 2 * i * 4096, 4096});
  ASSERT_EQ(pair.left->write(parts).bytes, kPages * 4096);
  std::vector<uint8_t> wire(2 * kPages * 4096);
  const ssize_t n = recv(pair.wire[1], wire.data(), wire.size(), MSG_PEEK);
  EXPECT_EQ(n, static_cast<ssize_t>(2 * (kRecordDataBytesMax + kRecordOverheadBytes)));
  std::vector<uint8_t> got(sent.size());
  for (size_t i = 0; i < kPages; ++i) parts[i] = {got.data() + 2 * (kPages - 1 - i) * 4096, 4096};
  ASSERT_EQ(pair.right->read(parts).bytes, kPages * 4096);
  for (size_t i = 0; i < kPages; ++i)
    EXPECT_EQ(std::memcmp(parts[i].iov_base, sent.data() + 2 * i * 4096, 4096), 0) << i;
}

// A record and then what `change` makes of it arrive; what the reader makes of that.
template <typename Change>
std::pair<IoStatus, size_t> after(Change change) {
  Pair pair;
  const auto data = random_bytes(1000, 1);
  RecordKeys keys(secret_of(2));
  std::vector<uint8_t> wire(2 * (kRecordOverheadBytes + data.size()));
  const iovec in = whole(data);
  keys.seal({&in, 1}, wire.data());
  keys.seal({&in, 1}, wire.data() + wire.size() / 2);
  change(wire);
  EXPECT_EQ(write(pair.wire[0], wire.data(), wire.size()), static_cast<ssize_t>(wire.size()));
  shutdown(pair.wire[0], SHUT_WR);
  std::vector<std::byte> into(4000);
  size_t total = 0;
  for (;;) {
    iovec part{into.data() + total, into.size() - total};
    const IoResult result = pair.right->read({&part, 1});
    if (result.status != IoStatus::progress) return {result.status, total};
    total += result.bytes;
  }
}

TEST(RecordStream, WhatWasTamperedWithEndsTheConnectionBeforeIt) {
  const size_t half = kRecordOverheadBytes + 1000;
  using Wire = std::vector<uint8_t>;
  EXPECT_EQ(after([](Wire&) {}), std::pair(IoStatus::closed, size_t{2000}));
  for (const size_t at : {half, half + 1, half + 2, half + 3, half + 4, half + 5, half + 600, 2 * half - 1})
    EXPECT_EQ(after([&](Wire& w) { w[at] ^= 0x40; }).second, 1000) << at;
  EXPECT_EQ(after([&](Wire& w) { w[half + 50] ^= 1; }), std::pair(IoStatus::failed, size_t{1000}));
  EXPECT_EQ(after([&](Wire& w) { std::copy_n(w.begin(), half, w.begin() + static_cast<ptrdiff_t>(half)); }),
            std::pair(IoStatus::failed, size_t{1000}));  // repeated
  EXPECT_EQ(after([&](Wire& w) { w.erase(w.begin(), w.begin() + static_cast<ptrdiff_t>(half)); }),
            std::pair(IoStatus::failed, size_t{0}));  // the first left out
  EXPECT_EQ(after([&](Wire& w) { w.resize(w.size() - 7); }).second, 1000);
  EXPECT_EQ(after([&](Wire& w) { w.assign({'G', 'E', 'T', ' ', '/', '\r', '\n'}); }),
            std::pair(IoStatus::failed, size_t{0}));
}

}  // namespace
}  // namespace medes
