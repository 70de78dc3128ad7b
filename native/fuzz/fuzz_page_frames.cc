// Any bytes as each of the page protocol's frames: parsed or refused, never more than was asked for. Magic,
// version and checksum are made right (but where the first byte has its high bit), so that what lies behind
// them is reached.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/checksum.h"
#include "transport/wire.h"

using namespace medes;

namespace {

template <typename T>
void mend_greeting(std::vector<std::byte>& frame) {
  T value;
  if (frame.size() != sizeof value) return;
  std::memcpy(&value, frame.data(), sizeof value);
  value.magic = wire::kHelloMagic, value.version = wire::kVersion;
  value.checksum = checksum64({reinterpret_cast<const std::byte*>(&value), offsetof(T, checksum)});
  std::memcpy(frame.data(), &value, sizeof value);
}

template <typename H>
void mend(std::vector<std::byte>& frame, uint32_t magic, uint16_t type) {
  H header;
  if (frame.size() < sizeof header) return;
  std::memcpy(&header, frame.data(), sizeof header);
  header.magic = magic, header.type = type;
  const uint64_t parts[2] = {checksum64({reinterpret_cast<const std::byte*>(&header), offsetof(H, checksum)}),
                             checksum64(Bytes(frame).subspan(sizeof header))};
  header.checksum = checksum64(std::as_bytes(std::span(parts)));
  std::memcpy(frame.data(), &header, sizeof header);
}

void check_request(Bytes input) {
  if (input.size() < sizeof(wire::RequestHeader)) return;
  const auto header = wire::parse_request_header(input.first(sizeof(wire::RequestHeader)));
  const auto reads = wire::parse_request_body(header, input.subspan(sizeof(wire::RequestHeader)));
  uint64_t total = 0;
  for (const auto& read : reads) total += read.length;
  if (reads.size() != header.count || total > kMaxBatchBytes) __builtin_trap();
}

// Every second read was of a page.
void check_reply(Bytes input) {
  if (input.size() < sizeof(wire::ReplyHeader)) return;
  const auto header = wire::parse_reply_header(input.first(sizeof(wire::ReplyHeader)));
  std::vector<uint32_t> asked(std::min<size_t>(header.count, 64));
  for (size_t i = 0; i < asked.size(); ++i) asked[i] = i % 2 == 0 ? kPageBytes : 1 + static_cast<uint32_t>(i);
  const auto entries = wire::parse_reply_body(header, input.subspan(sizeof(wire::ReplyHeader)), asked);
  uint64_t payload = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].length > asked[i]) __builtin_trap();
    (void)wire::code_from_wire(entries[i].status);
    payload += entries[i].length;
  }
  if (payload != header.payload_bytes || entries.size() != asked.size()) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::vector<std::byte> input(size - 1);
  if (size > 1) std::memcpy(input.data(), data + 1, size - 1);
  const bool mended = data[0] < 0x80;
  try {
    switch (data[0] % 5) {
      case 0:
        if (mended) mend_greeting<wire::Hello>(input);
        wire::parse_hello(input);
        break;
      case 1:
        if (mended) mend_greeting<wire::HelloReply>(input);
        wire::parse_hello_reply(input);
        break;
      case 2:
        if (mended) mend<wire::RequestHeader>(input, wire::kRequestMagic, wire::kRequestRead);
        check_request(input);
        break;
      case 3:
        if (mended) mend<wire::ReplyHeader>(input, wire::kReplyMagic, wire::kReplyRead);
        check_reply(input);
        break;
      default:
        if (mended) mend<wire::ReplyHeader>(input, wire::kReplyMagic, wire::kReplyError);
        check_reply(input);
    }
  } catch (const Error& e) {
    if (e.code != Code::corrupt && e.code != Code::unsupported && e.code != Code::limit_exceeded)
      __builtin_trap();
  }
  return 0;
}
