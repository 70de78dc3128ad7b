// A connection on which records of the other side, alerts and anybody's bytes come in any pieces: what is
// delivered is what the other side sent before the first foreign byte, in its order, and nothing else.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "transport/tls_records.h"

using namespace medes;

namespace {

struct Script {
  std::vector<uint8_t> wire, data;
};

// The input: a byte for what comes (two bits) and how much, then so much of it.
Script script_of(const uint8_t* input, size_t size, RecordKeys keys) {
  Script out;
  bool sound = true;
  for (size_t at = 0; at < size;) {
    const uint8_t what = input[at] % 4;
    const size_t n = std::min<size_t>(input[at] / 4, size - at - 1);
    const uint8_t* const bytes = input + at + 1;
    at += 1 + n;
    if (what == 0) {  // anybody's
      out.wire.insert(out.wire.end(), bytes, bytes + n);
      sound = sound && n == 0;
      continue;
    }
    const size_t before = out.wire.size();
    out.wire.resize(before + kRecordOverheadBytes + n);
    const uint8_t type = what == 3 ? kAlert : kApplicationData;
    if (!keys.seal(bytes, n, out.wire.data() + before, type)) __builtin_trap();
    if (type == kAlert) sound = false;  // an end of either kind
    if (sound) out.data.insert(out.data.end(), bytes, bytes + n);
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2 || size > 100'000) return 0;
  static const RecordKeys keys = [] {
    TrafficSecret secret;
    secret.fill(7);
    return RecordKeys(secret);
  }();
  const Script script = script_of(data + 2, size - 2, keys);
  const size_t piece = data[0] == 0 ? 1 : data[0] * size_t{3}, room = 1 + data[1] % 64;
  size_t received = 0;
  bool pause = false;
  const RecordInput::Receive receive = [&](uint8_t* into, size_t most) -> ssize_t {
    if ((pause = !pause && data[1] >= 128)) {
      errno = EAGAIN;
      return -1;
    }
    const size_t n = std::min({most, piece, script.wire.size() - received});
    if (n != 0) std::memcpy(into, script.wire.data() + received, n);
    received += n;
    return static_cast<ssize_t>(n);
  };
  RecordInput input(keys);
  size_t delivered = 0;
  for (;;) {
    uint8_t first[64], second[16];
    iovec parts[] = {{first, room}, {second, sizeof second}};
    const IoResult result = input.read(parts, receive);
    if (result.status == IoStatus::want_read) continue;
    if (result.status != IoStatus::progress) break;
    const size_t n = std::min(result.bytes, room), more = result.bytes - n;
    if (more > sizeof second || delivered + result.bytes > script.data.size() ||
        std::memcmp(script.data.data() + delivered, first, n) != 0 ||
        std::memcmp(script.data.data() + delivered + n, second, more) != 0)
      __builtin_trap();
    delivered += result.bytes;
  }
  if (delivered != script.data.size()) __builtin_trap();
  return 0;
}
