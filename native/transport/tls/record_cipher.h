// AES-128-GCM for TLS 1.3 records: one call a record, from where the plaintext lies to where the ciphertext
// goes and back, without a copy. Two implementations with equal output: VAES and VPCLMULQDQ on 512-bit
// vectors where the CPU has them (twice the speed of OpenSSL 3.0's), else OpenSSL's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace medes {

inline constexpr size_t kGcmKeyBytes = 16, kGcmNonceBytes = 12, kGcmTagBytes = 16;
inline constexpr size_t kRecordHeaderBytes = 5;

using GcmNonce = std::array<uint8_t, kGcmNonceBytes>;

class RecordCipher {
 public:
  virtual ~RecordCipher() = default;
  // Encrypts n bytes and the content type behind them; `out` gets n + 1 + kGcmTagBytes bytes.
  virtual void seal(const GcmNonce& nonce, const uint8_t* header, const uint8_t* in, size_t n, uint8_t type,
                    uint8_t* out) = 0;
  // Decrypts n bytes and the content type behind them from n + 1 + kGcmTagBytes bytes. False when the tag is
  // wrong: `out` then holds garbage that must not be used.
  virtual bool open(const GcmNonce& nonce, const uint8_t* header, const uint8_t* in, size_t n, uint8_t* out,
                    uint8_t& type) = 0;
};

std::unique_ptr<RecordCipher> make_record_cipher(const uint8_t* key);
std::unique_ptr<RecordCipher> make_openssl_cipher(const uint8_t* key);
bool has_vector_cipher();
std::unique_ptr<RecordCipher> make_vector_cipher(const uint8_t* key);  // only where has_vector_cipher()

}  // namespace medes
