// The record layer of a TLS 1.3 connection (RFC 8446, section 5) after its handshake, which OpenSSL has done.
// OpenSSL copies what it sends into its records, decrypts into a buffer of its own and calls the kernel twice
// a record; here pages are encrypted from the slab and decrypted to their destination, many records a system
// call.
#pragma once

#include <sys/uio.h>

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/wiped.h"
#include "transport/socket.h"
#include "transport/tls/record_cipher.h"

namespace medes {

// TLS_AES_128_GCM_SHA256 is the only cipher suite: its traffic secrets are of SHA-256's size.
using TrafficSecret = std::array<uint8_t, 32>;

struct TrafficSecrets {
  TrafficSecret read{}, write{};
};

inline constexpr uint8_t kAlert = 21, kApplicationData = 23;

// `peer_node` as Stream::peer_node has it.
std::unique_ptr<Stream> tls_record_stream(FileDescriptor fd, const TrafficSecrets& secrets,
                                          std::string peer_node);

// One direction of a connection: key, nonce and the number of the next record. For the fuzz target and tests.
class RecordKeys {
 public:
  explicit RecordKeys(const TrafficSecret& secret);
  // `out` gets a whole record of what the parts hold: kRecordOverheadBytes more. Parts and `ahead` are as
  // RecordCipher has them. False when no record may follow.
  bool seal(std::span<const iovec> in, uint8_t* out, uint8_t type = kApplicationData,
            const uint8_t* ahead = nullptr);
  enum class Opened { data, alert, bad };
  // A whole record of kRecordOverheadBytes more than the parts take.
  Opened open(const uint8_t* record, std::span<const iovec> out, const uint8_t* ahead = nullptr);
  bool spent() const { return next_ >= kRecordsWanted; }

 private:
  GcmNonce nonce() const;
  // So many records one key is good for (section 5.5 has 2^24.5); a connection asks to be replaced before.
  static constexpr uint64_t kRecordsMax = 1ULL << 24, kRecordsWanted = kRecordsMax / 2;

  std::shared_ptr<RecordCipher> cipher_;  // copies of this object are one connection's, on one thread
  GcmNonce iv_{};
  uint64_t next_ = 0;
};

inline constexpr size_t kRecordOverheadBytes = kRecordHeaderBytes + 1 + kGcmTagBytes;
inline constexpr size_t kRecordDataBytesMax = 16 * 1024;

// Cuts a list of parts into those of records, each with as much as a record and its cipher take.
class RecordParts {
 public:
  explicit RecordParts(std::span<const iovec> from) : from_(from) {}
  // The next at most n bytes, of fewer where a part ends within a step of the cipher. Valid until the next
  // call.
  std::span<const iovec> next(size_t n);
  // The next n bytes, or nothing where they cannot be had as parts of one record.
  std::span<const iovec> exactly(size_t n);
  size_t bytes() const { return bytes_; }  // of what was returned last
  bool ended();
  const uint8_t* ahead();  // where the next bytes are; null at the end
  // Puts bytes where the next ones are to go; how many there was room for.
  size_t fill(std::span<const uint8_t> bytes);

 private:
  std::span<const iovec> from_;
  size_t part_ = 0, offset_ = 0, bytes_ = 0;
  std::array<iovec, kRecordDataBytesMax / kGcmStepBytes + 1> found_;
};

using RecordBuffer = std::vector<uint8_t, WipingAllocator<uint8_t>>;

// What a connection receives: records in, their data out.
class RecordInput {
 public:
  explicit RecordInput(RecordKeys keys) : keys_(std::move(keys)) {}

  // As recv(2): how many bytes came, 0 at the connection's end, -1 and errno.
  using Receive = std::function<ssize_t(uint8_t* into, size_t room)>;
  // Fills `into` as far as records have come; only what it has nothing for is left to poll().
  IoResult read(std::span<iovec> into, const Receive& receive);
  bool refused() const { return refused_; }
  bool spent() const { return keys_.spent(); }

 private:
  struct Record {
    IoStatus status;
    const uint8_t* bytes = nullptr;
    size_t data_bytes = 0;
  };
  Record next_record() const;
  size_t open(const Record& record, RecordParts& into);
  IoStatus fill(const Receive& receive);

  RecordKeys keys_;
  WipedRoom in_;
  size_t in_begin_ = 0, in_end_ = 0;
  RecordBuffer opened_;                // of a record that did not go straight to its destination
  size_t taken_ = 0;                   // of opened_
  IoStatus end_ = IoStatus::progress;  // closed or failed: what every later read says
  bool refused_ = false;
};

}  // namespace medes
