// The page server's protocol (drawn in docs/transport.md), little-endian, version 1.
//
//   client  Hello ─────────────────────►            once a connection
//           ◄───────────────── HelloReply  server
//           RequestHeader, count × ReadDescriptor ►  any number, pipelined
//           ◄ ReplyHeader, count × ReplyEntry, bytes of the reads that are ok, in order
//
// Replies come in the order of the requests. After a frame that breaks the format the server sends one
// ReplyHeader of type kReplyError and closes. No length is believed before it was compared with its bound.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/bytes.h"
#include "common/error.h"
#include "common/limits.h"

namespace medes {

using Token = std::array<std::byte, kTokenBytes>;

namespace wire {

inline constexpr uint64_t kHelloMagic = 0x3147415044454Dull;  // "MEDPAG1\0"
inline constexpr uint32_t kRequestMagic = 0x3151524D;         // "MRQ1"
inline constexpr uint32_t kReplyMagic = 0x3150524D;           // "MRP1"
inline constexpr uint16_t kVersion = 1;
inline constexpr uint16_t kRequestRead = 1;
inline constexpr uint16_t kReplyRead = 2;
inline constexpr uint16_t kReplyError = 3;

struct Hello {
  uint64_t magic;
  uint16_t version;
  uint16_t flags;  // 0
  uint32_t reserved;
  Token token;
  uint64_t checksum;  // over all bytes before it, as in every struct here that has one
};
struct HelloReply {
  uint64_t magic;
  uint16_t version;
  uint16_t status;  // Code: ok, unauthenticated, busy, unsupported (version)
  uint32_t max_reads;
  uint64_t max_batch_bytes;
  uint64_t max_read_bytes;
  uint64_t checksum;
};
struct RequestHeader {
  uint32_t magic;
  uint16_t type;
  uint16_t reserved;
  uint64_t request_id;
  uint32_t count;  // 1 … kMaxReadsPerBatch
  uint32_t reserved2;
  uint64_t checksum;  // over the bytes before it and the descriptors
};
struct ReadDescriptor {
  uint64_t base_id;
  uint64_t offset;
  uint32_t length;
  uint32_t reserved;
};
struct ReplyHeader {
  uint32_t magic;
  uint16_t type;
  uint16_t status;  // Code of an error reply, else 0
  uint64_t request_id;
  uint32_t count;
  uint32_t reserved;
  uint64_t payload_bytes;
  uint64_t checksum;  // over the bytes before it and the entries
};
struct ReplyEntry {
  uint16_t status;  // Code
  uint16_t reserved;
  uint32_t length;  // as asked for where ok, else 0
  uint64_t digest;  // of the bytes (see digested_by_pages) where ok, else 0
};

static_assert(sizeof(Hello) == 56 && offsetof(Hello, token) == 16 && offsetof(Hello, checksum) == 48);
static_assert(sizeof(HelloReply) == 40 && offsetof(HelloReply, checksum) == 32);
static_assert(sizeof(RequestHeader) == 32 && offsetof(RequestHeader, checksum) == 24);
static_assert(sizeof(ReadDescriptor) == 24);
static_assert(sizeof(ReplyHeader) == 40 && offsetof(ReplyHeader, checksum) == 32);
static_assert(sizeof(ReplyEntry) == 16 && offsetof(ReplyEntry, digest) == 8);

// Makers fill in magic, version and checksum.
Hello make_hello(const Token& token);
HelloReply make_hello_reply(Code status);
std::vector<std::byte> make_request(uint64_t request_id, std::span<const ReadDescriptor> reads);
std::vector<std::byte> make_reply(uint64_t request_id, std::span<const ReplyEntry> entries);
ReplyHeader make_error_reply(uint64_t request_id, Code status);

// Parsers check everything that can be checked without knowing the slabs. They throw corrupt for a broken
// format, limit_exceeded for a number beyond its bound, unsupported for another version.
Hello parse_hello(Bytes data);             // exactly sizeof(Hello)
HelloReply parse_hello_reply(Bytes data);  // exactly sizeof(HelloReply)
RequestHeader parse_request_header(Bytes data);
// `body` are the header's count × descriptors; checks the checksum and the sum of lengths.
std::vector<ReadDescriptor> parse_request_body(const RequestHeader& header, Bytes body);
ReplyHeader parse_reply_header(Bytes data);
// Checks entries against what was asked for, so that no byte can land outside a read's destination.
std::vector<ReplyEntry> parse_reply_body(const ReplyHeader& header, Bytes body,
                                         std::span<const uint32_t> lengths_asked);

Token token_from(Bytes data);  // throws invalid_argument unless it is kTokenBytes long

// A Code received from elsewhere: anything outside the catalogue is internal.
Code code_from_wire(uint16_t value) noexcept;

// What protects a read's bytes. A read of whole pages is digested over the pages' checksums, which a slab
// keeps: the server then spends next to nothing on it, and the check reaches back to the moment the base was
// made. Any other read is digested over its bytes, with checksum64().
constexpr bool digested_by_pages(uint64_t offset, uint32_t length) {
  return offset % kPageBytes == 0 && length % kPageBytes == 0;
}
uint64_t digest_of_pages(std::span<const uint64_t> page_checksums);

}  // namespace wire
}  // namespace medes
