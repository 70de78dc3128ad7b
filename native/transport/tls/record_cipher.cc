#include "transport/tls/record_cipher.h"

#include <openssl/evp.h>

#include <cstring>

#include "common/error.h"

namespace medes {

namespace {

class OpensslCipher final : public RecordCipher {
 public:
  explicit OpensslCipher(const uint8_t* key) : context_(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free) {
    if (!context_ || EVP_CipherInit_ex(context_.get(), EVP_aes_128_gcm(), nullptr, key, nullptr, 1) != 1)
      throw Error(Code::internal, "cannot make an AES-GCM context");
  }

  void seal(const GcmNonce& nonce, const uint8_t* header, std::span<const iovec> in, uint8_t type,
            uint8_t* out, const uint8_t*) override {
    bool ok = begin(nonce, header, 1);
    for (const iovec& part : in) {
      ok = ok && update(out, static_cast<const uint8_t*>(part.iov_base), part.iov_len);
      out += part.iov_len;
    }
    int unused = 0;
    ok = ok && update(out, &type, 1) && EVP_CipherFinal_ex(context_.get(), out + 1, &unused) == 1 &&
         EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_GET_TAG, kGcmTagBytes, out + 1) == 1;
    if (!ok) throw Error(Code::internal, "AES-GCM failed");
  }

  bool open(const GcmNonce& nonce, const uint8_t* header, const uint8_t* in, std::span<const iovec> out,
            uint8_t& type, const uint8_t*) override {
    bool ok = begin(nonce, header, 0);
    for (const iovec& part : out) {
      ok = ok && update(static_cast<uint8_t*>(part.iov_base), in, part.iov_len);
      in += part.iov_len;
    }
    int done = 0;
    uint8_t none = 0;
    auto* tag = const_cast<uint8_t*>(in + 1);  // only read
    return ok && update(&type, in, 1) &&
           EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_SET_TAG, kGcmTagBytes, tag) == 1 &&
           EVP_CipherFinal_ex(context_.get(), &none, &done) == 1;
  }

 private:
  bool begin(const GcmNonce& nonce, const uint8_t* header, int encrypt) {
    int done = 0;
    return EVP_CipherInit_ex(context_.get(), nullptr, nullptr, nullptr, nonce.data(), encrypt) == 1 &&
           EVP_CipherUpdate(context_.get(), nullptr, &done, header, kRecordHeaderBytes) == 1;
  }
  bool update(uint8_t* out, const uint8_t* in, size_t n) {
    int done = 0;
    return n == 0 || EVP_CipherUpdate(context_.get(), out, &done, in, static_cast<int>(n)) == 1;
  }

  std::unique_ptr<EVP_CIPHER_CTX, void (*)(EVP_CIPHER_CTX*)> context_;
};

}  // namespace

std::unique_ptr<RecordCipher> make_openssl_cipher(const uint8_t* key) {
  return std::make_unique<OpensslCipher>(key);
}

std::unique_ptr<RecordCipher> make_record_cipher(const uint8_t* key) {
  return has_vector_cipher() ? make_vector_cipher(key) : make_openssl_cipher(key);
}

}  // namespace medes
