// The client side of the page protocol against a peer that answers in pieces of any size, fails reads, lies
// about digests and damages a byte: a read that ends ok holds the right bytes, nothing is written outside the
// destinations, and every request ends.
#include <sys/eventfd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "common/checksum.h"
#include "transport/tcp/tcp_connection.h"

using namespace medes;

namespace {

// Choices made by the input; 0 when it has run out.
struct Choices {
  const uint8_t* data;
  size_t left;
  uint8_t next() {
    if (left == 0) return 0;
    --left;
    return *data++;
  }
};

class ScriptedStream final : public Stream {
 public:
  ScriptedStream(std::vector<std::byte> script, Choices& choices)
      : Stream(FileDescriptor(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK))),  // always readable: poll never sleeps
        script_(std::move(script)),
        choices_(choices) {}
  const char* transport_name() const override { return "script"; }
  IoResult read(std::span<iovec> into) override {
    if (at_ == script_.size()) return {IoStatus::closed, 0};
    const uint8_t size = choices_.next();
    if (size == 255) return {IoStatus::want_read, 0};
    size_t budget = size == 0 ? script_.size() : size * size_t{37};
    size_t moved = 0;
    for (const iovec& part : into) {
      const size_t n = std::min({part.iov_len, script_.size() - at_, budget});
      if (n == 0) break;
      std::memcpy(part.iov_base, script_.data() + at_, n);
      at_ += n;
      moved += n;
      budget -= n;
    }
    return {IoStatus::progress, moved};
  }
  IoResult write(std::span<const iovec> from) override {
    size_t n = 0;
    for (const iovec& part : from) n += part.iov_len;
    return {IoStatus::progress, n};
  }

 private:
  const std::vector<std::byte> script_;
  Choices& choices_;
  size_t at_ = 0;
};

// What the base has from `offset` on.
const std::byte* content(uint64_t offset) {
  static const std::vector<std::byte> base = [] {
    std::vector<std::byte> made(20 * kPageBytes);
    for (size_t i = 0; i < made.size(); ++i) made[i] = static_cast<std::byte>(i * 31 >> 3);
    return made;
  }();
  return base.data() + offset;
}

uint64_t digest(const ReadRequest& read, Bytes data) {
  if (!wire::digested_by_pages(read.offset, read.length)) return checksum64(data);
  std::vector<uint64_t> sums;
  for (size_t at = 0; at < data.size(); at += kPageBytes)
    sums.push_back(checksum64(data.subspan(at, kPageBytes)));
  return wire::digest_of_pages(sums);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Choices choices{data, size};
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::shared_ptr<TcpRequest>> requests;
  std::vector<std::byte> script;
  const size_t request_count = 1 + choices.next() % 3;
  for (size_t r = 0; r < request_count; ++r) {
    auto request = std::make_shared<TcpRequest>();
    std::vector<wire::ReplyEntry> entries;
    std::vector<std::byte> payload;
    const size_t read_count = 1 + choices.next() % 4;
    for (size_t i = 0; i < read_count; ++i) {
      const uint8_t shape = choices.next(), outcome = choices.next();
      ReadRequest read;
      read.offset = shape & 1 ? (shape >> 4) * kPageBytes : shape * size_t{16};
      read.length = shape & 2 ? (1 + (shape >> 7)) * kPageBytes : 1 + shape * 3;
      memory.emplace_back(read.length);
      read.destination = memory.back().data();
      request->reads.push_back(read);
      if (outcome % 3 == 1) {
        entries.push_back({static_cast<uint16_t>(outcome >> 2), 0, 0, 0});
        // A failed read has no bytes; the code ok without bytes is a broken reply.
        continue;
      }
      const Bytes bytes(content(read.offset), read.length);
      entries.push_back({0, 0, read.length, digest(read, bytes) ^ (outcome == 5 ? 1 : 0)});
      payload.insert(payload.end(), bytes.begin(), bytes.end());
    }
    const auto head = wire::make_reply(r + 1, entries);
    script.insert(script.end(), head.begin(), head.end());
    script.insert(script.end(), payload.begin(), payload.end());
    requests.push_back(std::move(request));
  }
  const uint8_t damage = choices.next();
  if (damage > 0) script[(damage * size_t{257} + choices.next()) % script.size()] ^= std::byte{damage};
  // Seldom: a megabyte of scrap memory goes with it.
  const uint8_t wish = choices.next(), abandoned = wish < 0xe0 ? 0 : wish;

  TcpConnection connection(std::make_unique<ScriptedStream>(std::move(script), choices), false, true);
  for (auto& request : requests) connection.submit(request);
  for (size_t r = 0; r < requests.size(); ++r)
    if (abandoned >> r & 1) connection.abandon(*requests[r]);
  for (size_t r = 0; r < requests.size(); ++r) {
    if (!connection.wait(*requests[r], Clock::now() + std::chrono::seconds(60))) __builtin_trap();
    if (abandoned >> r & 1) continue;
    for (size_t i = 0; i < requests[r]->reads.size(); ++i) {
      if (requests[r]->status[i] != Code::ok) continue;
      const ReadRequest& read = requests[r]->reads[i];
      if (std::memcmp(read.destination, content(read.offset), read.length) != 0) __builtin_trap();
    }
  }
  return 0;
}
