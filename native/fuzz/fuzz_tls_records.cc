// A connection on which records of the other side, alerts and anybody's bytes come in any pieces: what is
// delivered is what the other side sent before the first foreign byte, in its order, and nothing else.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "transport/tls/tls_records.h"

using namespace medes;

namespace {

constexpr size_t kRoomMax = 3 * kGcmStepBytes, kLongTimes = 16, kReceivesMax = 256;

struct Script {
  std::vector<uint8_t> wire, data;
};

// Seals what is there as one record, of two parts where the cipher takes it in two.
void add_record(Script& script, RecordKeys& keys, std::span<const uint8_t> bytes, uint8_t type) {
  const size_t before = script.wire.size(), first = bytes.size() / 2 / kGcmStepBytes * kGcmStepBytes;
  script.wire.resize(before + kRecordOverheadBytes + bytes.size());
  auto* const data = const_cast<uint8_t*>(bytes.data());  // an iovec for sealing is only read
  const iovec parts[] = {{data, first}, {data + first, bytes.size() - first}};
  if (!keys.seal(parts, script.wire.data() + before, type)) __builtin_trap();
}

// The input: a byte for what comes (two bits) and how much, then so much of it; long records repeat it.
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
    const uint8_t type = what == 3 ? kAlert : kApplicationData;
    std::vector<uint8_t> record(what == 2 ? kLongTimes * n : n);
    for (size_t i = 0; n != 0 && i < record.size(); i += n) std::memcpy(record.data() + i, bytes, n);
    add_record(out, keys, record, type);
    if (type == kAlert) sound = false;  // an end of either kind
    if (sound) out.data.insert(out.data.end(), record.begin(), record.end());
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
  const size_t piece = std::max(data[0] == 0 ? 1 : data[0] * size_t{3}, script.wire.size() / kReceivesMax);
  // Room for records' data: in steps of the cipher, or in none.
  const bool steps = data[1] & 64;
  const size_t room = steps ? data[1] % 4 * kGcmStepBytes : 1 + data[1] % 64;
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
    uint8_t into[3][kRoomMax];
    iovec parts[] = {{into[0], room}, {into[1], steps ? kGcmStepBytes : 16}, {into[2], 48}};
    const IoResult result = input.read(parts, receive);
    if (result.status == IoStatus::want_read) continue;
    if (result.status != IoStatus::progress) break;
    size_t left = result.bytes;
    for (const iovec& part : parts) {
      const size_t n = std::min(left, part.iov_len);
      if (n > script.data.size() - delivered ||
          std::memcmp(script.data.data() + delivered, part.iov_base, n) != 0)
        __builtin_trap();
      delivered += n, left -= n;
    }
    if (left != 0) __builtin_trap();
  }
  if (delivered != script.data.size()) __builtin_trap();
  return 0;
}
