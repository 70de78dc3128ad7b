// AES-128-GCM for TLS 1.3 records: one call a record, from where the plaintext lies to where the ciphertext
// goes and back, without a copy. Two implementations with equal output: VAES and VPCLMULQDQ on 512-bit
// vectors where the CPU has them (twice the speed of OpenSSL 3.0's), else OpenSSL's.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace medes {

inline constexpr size_t kGcmKeyBytes = 16, kGcmNonceBytes = 12, kGcmTagBytes = 16;
inline constexpr size_t kRecordHeaderBytes = 5;
// Every part of a record's data but the last is a multiple of it.
inline constexpr size_t kGcmStepBytes = 512;

using GcmNonce = std::array<uint8_t, kGcmNonceBytes>;

class RecordCipher {
 public:
  virtual ~RecordCipher() = default;
  // Encrypts the n bytes of the parts and the content type behind them; `out` gets n + 1 + kGcmTagBytes
  // bytes. `ahead`: what is likely to be sealed next, or null; only fetched into the cache.
  virtual void seal(const GcmNonce& nonce, const uint8_t* header, std::span<const iovec> in, uint8_t type,
                    uint8_t* out, const uint8_t* ahead) = 0;
  // Decrypts as many bytes as the parts take, and the content type behind them. False when the tag is wrong:
  // the parts then hold garbage that must not be used. `ahead`: where the next ones are likely to go.
  virtual bool open(const GcmNonce& nonce, const uint8_t* header, const uint8_t* in,
                    std::span<const iovec> out, uint8_t& type, const uint8_t* ahead) = 0;
};

std::unique_ptr<RecordCipher> make_record_cipher(const uint8_t* key);
std::unique_ptr<RecordCipher> make_openssl_cipher(const uint8_t* key);
bool has_vector_cipher();
std::unique_ptr<RecordCipher> make_vector_cipher(const uint8_t* key);  // only where has_vector_cipher()

}  // namespace medes
