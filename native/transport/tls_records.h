// The record layer of a TLS 1.3 connection (RFC 8446, section 5) after its handshake, which OpenSSL has done.
// OpenSSL copies what it sends into its records, decrypts into a buffer of its own and calls the kernel twice
// a record; here pages are encrypted from the slab and decrypted to their destination, many records a system
// call.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "transport/record_cipher.h"
#include "transport/socket.h"

namespace medes {

// TLS_AES_128_GCM_SHA256 is the only cipher suite: its traffic secrets are of SHA-256's size.
using TrafficSecret = std::array<uint8_t, 32>;

struct TrafficSecrets {
  TrafficSecret read{}, write{};
};

// `peer_node` as Stream::peer_node has it.
std::unique_ptr<Stream> tls_record_stream(FileDescriptor fd, const TrafficSecrets& secrets,
                                          std::string peer_node);

// One direction of a connection: key, nonce and the number of the next record. For the fuzz target and tests.
class RecordKeys {
 public:
  explicit RecordKeys(const TrafficSecret& secret);
  // `out` gets a whole record of n bytes: kRecordOverheadBytes more. False when no record may follow.
  bool seal(const uint8_t* in, size_t n, uint8_t* out);
  enum class Opened { data, alert, bad };
  // A whole record of kRecordOverheadBytes + n bytes; `out` gets n.
  Opened open(const uint8_t* record, size_t n, uint8_t* out);
  bool spent() const { return next_ >= kRecordsWanted; }

 private:
  GcmNonce nonce() const;
  // So many records one key is good for (section 5.5 has 2^24.5); a connection asks to be replaced before.
  static constexpr uint64_t kRecordsMax = 1ULL << 24, kRecordsWanted = kRecordsMax / 2;

  std::unique_ptr<RecordCipher> cipher_;
  GcmNonce iv_{};
  uint64_t next_ = 0;
};

inline constexpr size_t kRecordOverheadBytes = kRecordHeaderBytes + 1 + kGcmTagBytes;
inline constexpr size_t kRecordDataBytesMax = 16 * 1024;

}  // namespace medes
