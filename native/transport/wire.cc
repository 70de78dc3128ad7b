#include "transport/wire.h"

#include <cstring>

#include "common/checksum.h"

namespace medes::wire {

namespace {

template <typename T>
Bytes bytes_of(const T& value) {
  return {reinterpret_cast<const std::byte*>(&value), sizeof value};
}

template <typename T>
T read_struct(Bytes data, const char* what) {
  if (data.size() != sizeof(T)) throw Error(Code::corrupt, std::string(what) + ": wrong length");
  T value;
  std::memcpy(&value, data.data(), sizeof value);
  return value;
}

// For structs whose last member is the checksum of what precedes it.
template <typename T>
uint64_t own_checksum(const T& value) {
  return checksum64(bytes_of(value).first(offsetof(T, checksum)));
}

// For frames: header without its checksum, then the table that follows it.
template <typename H>
uint64_t frame_checksum(const H& header, Bytes table) {
  const uint64_t parts[2] = {own_checksum(header), checksum64(table)};
  return checksum64({reinterpret_cast<const std::byte*>(parts), sizeof parts});
}

template <typename H>
std::vector<std::byte> frame(H header, Bytes table) {
  header.checksum = frame_checksum(header, table);
  std::vector<std::byte> out(sizeof header + table.size());
  std::memcpy(out.data(), &header, sizeof header);
  if (!table.empty()) std::memcpy(out.data() + sizeof header, table.data(), table.size());
  return out;
}

template <typename T>
std::vector<T> read_table(Bytes body, uint32_t count, const char* what) {
  if (body.size() != static_cast<size_t>(count) * sizeof(T))
    throw Error(Code::corrupt, std::string(what) + ": wrong table length");
  std::vector<T> out(count);
  // An empty body has no address, and memcpy's arguments must not be null even for zero bytes.
  if (!body.empty()) std::memcpy(out.data(), body.data(), body.size());
  return out;
}

void require(bool ok, const char* what, Code code = Code::corrupt) {
  if (!ok) throw Error(code, what);
}

}  // namespace

Hello make_hello(const Token& token) {
  Hello hello{kHelloMagic, kVersion, 0, 0, token, 0};
  hello.checksum = own_checksum(hello);
  return hello;
}

HelloReply make_hello_reply(Code status) {
  HelloReply reply{kHelloMagic,   kVersion, static_cast<uint16_t>(status), kMaxReadsPerBatch, kMaxBatchBytes,
                   kMaxReadBytes, 0};
  reply.checksum = own_checksum(reply);
  return reply;
}

std::vector<std::byte> make_request(uint64_t request_id, std::span<const ReadDescriptor> reads) {
  return frame(
      RequestHeader{kRequestMagic, kRequestRead, 0, request_id, static_cast<uint32_t>(reads.size()), 0, 0},
      std::as_bytes(reads));
}

std::vector<std::byte> make_reply(uint64_t request_id, std::span<const ReplyEntry> entries) {
  uint64_t payload = 0;
  for (const ReplyEntry& entry : entries) payload += entry.length;
  return frame(ReplyHeader{kReplyMagic, kReplyRead, 0, request_id, static_cast<uint32_t>(entries.size()), 0,
                           payload, 0},
               std::as_bytes(entries));
}

ReplyHeader make_error_reply(uint64_t request_id, Code status) {
  ReplyHeader header{kReplyMagic, kReplyError, static_cast<uint16_t>(status), request_id, 0, 0, 0, 0};
  header.checksum = frame_checksum(header, {});
  return header;
}

Hello parse_hello(Bytes data) {
  const auto hello = read_struct<Hello>(data, "hello");
  require(hello.magic == kHelloMagic, "hello: wrong magic");
  require(hello.version == kVersion, "hello: unknown protocol version", Code::unsupported);
  require(hello.checksum == own_checksum(hello), "hello: checksum");
  require(hello.flags == 0 && hello.reserved == 0, "hello: reserved bits set");
  return hello;
}

HelloReply parse_hello_reply(Bytes data) {
  const auto reply = read_struct<HelloReply>(data, "hello reply");
  require(reply.magic == kHelloMagic, "hello reply: wrong magic");
  require(reply.checksum == own_checksum(reply), "hello reply: checksum");
  require(reply.version == kVersion, "hello reply: unknown protocol version", Code::unsupported);
  return reply;
}

RequestHeader parse_request_header(Bytes data) {
  const auto header = read_struct<RequestHeader>(data, "request");
  require(header.magic == kRequestMagic, "request: wrong magic");
  require(header.type == kRequestRead, "request: unknown type");
  require(header.reserved == 0 && header.reserved2 == 0, "request: reserved bits set");
  require(header.count >= 1 && header.count <= kMaxReadsPerBatch, "request: reads in one batch",
          Code::limit_exceeded);
  return header;
}

std::vector<ReadDescriptor> parse_request_body(const RequestHeader& header, Bytes body) {
  auto reads = read_table<ReadDescriptor>(body, header.count, "request");
  require(header.checksum == frame_checksum(header, body), "request: checksum");
  uint64_t total = 0;
  for (const ReadDescriptor& read : reads) {
    require(read.reserved == 0, "request: reserved bits set");
    require(read.length >= 1 && read.length <= kMaxReadBytes, "request: length of one read",
            Code::limit_exceeded);
    total += read.length;
  }
  require(total <= kMaxBatchBytes, "request: bytes in one batch", Code::limit_exceeded);
  return reads;
}

ReplyHeader parse_reply_header(Bytes data) {
  const auto header = read_struct<ReplyHeader>(data, "reply");
  require(header.magic == kReplyMagic, "reply: wrong magic");
  require(header.type == kReplyRead || header.type == kReplyError, "reply: unknown type");
  require(header.count <= kMaxReadsPerBatch, "reply: reads in one batch", Code::limit_exceeded);
  if (header.type == kReplyError)
    require(header.checksum == frame_checksum(header, {}) && header.count == 0 && header.payload_bytes == 0,
            "error reply: malformed");
  return header;
}

std::vector<ReplyEntry> parse_reply_body(const ReplyHeader& header, Bytes body,
                                         std::span<const uint32_t> lengths_asked) {
  auto entries = read_table<ReplyEntry>(body, header.count, "reply");
  require(header.checksum == frame_checksum(header, body), "reply: checksum");
  require(entries.size() == lengths_asked.size(), "reply: number of reads");
  uint64_t payload = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    const bool ok = entries[i].status == static_cast<uint16_t>(Code::ok);
    require(entries[i].length == (ok ? lengths_asked[i] : 0), "reply: length of a read");
    payload += entries[i].length;
  }
  require(payload == header.payload_bytes, "reply: payload length");
  return entries;
}

Token token_from(Bytes data) {
  if (data.size() != kTokenBytes)
    throw Error(Code::invalid_argument, "a token is " + std::to_string(kTokenBytes) + " bytes");
  Token token;
  std::memcpy(token.data(), data.data(), token.size());
  return token;
}

Code code_from_wire(uint16_t value) noexcept {
  return value <= static_cast<uint16_t>(Code::internal) ? static_cast<Code>(value) : Code::internal;
}

uint64_t digest_of_pages(std::span<const uint64_t> page_checksums) {
  return checksum64(std::as_bytes(page_checksums));
}

}  // namespace medes::wire
