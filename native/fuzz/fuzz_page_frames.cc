// The parsers of the page server's protocol, both sides, on arbitrary bytes: they may throw Error and nothing
// else, and must not read outside the input. The first byte picks the parser.
#include <cstddef>
#include <cstdint>

#include "transport/wire.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const Bytes input(reinterpret_cast<const std::byte*>(data + 1), size - 1);
  try {
    switch (data[0] % 4) {
      case 0: wire::parse_hello(input); break;
      case 1: wire::parse_hello_reply(input); break;
      case 2: {
        if (input.size() < sizeof(wire::RequestHeader)) break;
        const auto header = wire::parse_request_header(input.first(sizeof(wire::RequestHeader)));
        wire::parse_request_body(header, input.subspan(sizeof(wire::RequestHeader)));
        break;
      }
      default: {
        if (input.size() < sizeof(wire::ReplyHeader)) break;
        const auto header = wire::parse_reply_header(input.first(sizeof(wire::ReplyHeader)));
        const std::vector<uint32_t> asked(header.count, 4096);
        const auto entries = wire::parse_reply_body(header, input.subspan(sizeof(wire::ReplyHeader)), asked);
        uint64_t payload = 0;
        for (const auto& entry : entries) payload += entry.length;
        if (payload != header.payload_bytes || entries.size() != asked.size()) __builtin_trap();
      }
    }
  } catch (const Error&) {
  }
  return 0;
}
