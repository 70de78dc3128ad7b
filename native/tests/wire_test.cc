#include "transport/wire.h"

#include <gtest/gtest.h>

#include <cstring>

#include "common/checksum.h"

namespace medes {
namespace {

template <typename F>
Code code_of(F&& f) {
  try {
    f();
    return Code::ok;
  } catch (const Error& e) {
    return e.code;
  }
}

std::vector<std::byte> request() {
  const std::vector<wire::ReadDescriptor> reads = {{7, 16, 4096, 0}, {8, 0, kMaxReadBytes, 0}};
  return wire::make_request(42, reads);
}

Code parse_request(Bytes frame) {
  return code_of([&] {
    const auto header = wire::parse_request_header(frame.first(sizeof(wire::RequestHeader)));
    wire::parse_request_body(header, frame.subspan(sizeof(wire::RequestHeader)));
  });
}

TEST(Wire, RequestComesBack) {
  const auto frame = request();
  const auto header = wire::parse_request_header(Bytes(frame).first(sizeof(wire::RequestHeader)));
  EXPECT_EQ(header.request_id, 42u);
  const auto reads = wire::parse_request_body(header, Bytes(frame).subspan(sizeof(wire::RequestHeader)));
  ASSERT_EQ(reads.size(), 2u);
  EXPECT_EQ(reads[0].offset, 16u);
  EXPECT_EQ(reads[1].length, kMaxReadBytes);
}

TEST(Wire, EveryFlippedBitOfARequestIsNoticed) {
  const auto good = request();
  ASSERT_EQ(parse_request(good), Code::ok);
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    auto bad = good;
    bad[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_NE(parse_request(bad), Code::ok) << "bit " << bit;
  }
}

TEST(Wire, ReplyIsHeldAgainstWhatWasAsked) {
  const std::vector<wire::ReplyEntry> entries = {{0, 0, 4096, 1},
                                                 {static_cast<uint16_t>(Code::not_found), 0, 0, 0}};
  const auto frame = wire::make_reply(1, entries);
  const auto header = wire::parse_reply_header(Bytes(frame).first(sizeof(wire::ReplyHeader)));
  const Bytes body = Bytes(frame).subspan(sizeof(wire::ReplyHeader));
  EXPECT_EQ(header.payload_bytes, 4096u);
  const std::vector<uint32_t> right = {4096, 64}, longer = {8192, 64}, fewer = {4096};
  EXPECT_EQ(code_of([&] { wire::parse_reply_body(header, body, right); }), Code::ok);
  EXPECT_EQ(code_of([&] { wire::parse_reply_body(header, body, longer); }), Code::corrupt);
  EXPECT_EQ(code_of([&] { wire::parse_reply_body(header, body, fewer); }), Code::corrupt);
}

TEST(Wire, HelloAndErrorReply) {
  Token token;
  token.fill(std::byte{0x5a});
  const auto hello = wire::make_hello(token);
  EXPECT_EQ(wire::parse_hello(std::as_bytes(std::span(&hello, 1))).token, token);
  auto other = hello;
  other.version = 9;
  EXPECT_EQ(code_of([&] { wire::parse_hello(std::as_bytes(std::span(&other, 1))); }), Code::unsupported);
  const auto error = wire::make_error_reply(5, Code::limit_exceeded);
  EXPECT_EQ(wire::parse_reply_header(std::as_bytes(std::span(&error, 1))).status,
            static_cast<uint16_t>(Code::limit_exceeded));
  EXPECT_EQ(wire::code_from_wire(60000), Code::internal);
  EXPECT_EQ(code_of([] { wire::token_from({}); }), Code::invalid_argument);
}

TEST(Wire, DigestOfWholePagesIsThatOfTheirChecksums) {
  std::vector<std::byte> data(2 * kPageBytes, std::byte{3});
  EXPECT_TRUE(wire::digested_by_pages(kPageBytes, 2 * kPageBytes));
  EXPECT_FALSE(wire::digested_by_pages(16, 2 * kPageBytes));
  EXPECT_FALSE(wire::digested_by_pages(kPageBytes, kPageBytes + 16));
  const std::vector<uint64_t> sums(2, checksum64(Bytes(data).first(kPageBytes)));
  EXPECT_EQ(wire::digest_of_pages(sums), checksum64(std::as_bytes(std::span(sums))));
  EXPECT_NE(wire::digest_of_pages(sums), checksum64(data));
}

}  // namespace
}  // namespace medes
