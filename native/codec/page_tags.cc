#include "codec/page_tags.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <bit>
#include <cstring>
#include <memory>

#include "codec/nh_kernels.h"
#include "common/error.h"

namespace medes {

namespace {

constexpr char kPurpose[] = "medes page tags";

auto nh_kernel(SimdLevel level) {
#if defined(__x86_64__)
  if (level == SimdLevel::avx512) return kernels::nh_avx512;
  if (level == SimdLevel::avx2) return kernels::nh_avx2;
#endif
  return kernels::nh_scalar;
}

// HMAC-SHA256 of purpose and nonce is the key of an AES-256-CTR stream of as many bytes as are wanted.
void derive(const StoreKey& key, const TagNonce& nonce, MutableBytes out) {
  std::array<unsigned char, sizeof kPurpose + kTagNonceBytes> input;
  std::memcpy(input.data(), kPurpose, sizeof kPurpose);
  std::memcpy(input.data() + sizeof kPurpose, nonce.data(), nonce.size());
  unsigned char image_key[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  bool ok = HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), input.data(), input.size(),
                 image_key, &length) != nullptr;
  const std::unique_ptr<EVP_CIPHER_CTX, void (*)(EVP_CIPHER_CTX*)> context(EVP_CIPHER_CTX_new(),
                                                                           EVP_CIPHER_CTX_free);
  constexpr unsigned char kFirst[16] = {};
  auto* const stream = reinterpret_cast<unsigned char*>(out.data());
  std::memset(stream, 0, out.size());
  int made = 0;
  ok = ok && length == 32 && context &&
       EVP_EncryptInit_ex(context.get(), EVP_aes_256_ctr(), nullptr, image_key, kFirst) == 1 &&
       EVP_EncryptUpdate(context.get(), stream, &made, stream, static_cast<int>(out.size())) == 1 &&
       static_cast<size_t>(made) == out.size();
  OPENSSL_cleanse(image_key, sizeof image_key);
  if (!ok) throw Error(Code::internal, "the key of page tags cannot be derived");
}

struct Sip {
  uint64_t v0, v1, v2, v3;
  void rounds(int n) noexcept {
    while (n-- > 0) {
      v0 += v1;
      v2 += v3;
      v1 = std::rotl(v1, 13) ^ v0;
      v3 = std::rotl(v3, 16) ^ v2;
      v0 = std::rotl(v0, 32) + v3;
      v2 += v1;
      v3 = std::rotl(v3, 21) ^ v0;
      v1 = std::rotl(v1, 17) ^ v2;
      v2 = std::rotl(v2, 32);
    }
  }
};

}  // namespace

uint64_t siphash24(const uint64_t key[2], const uint64_t (&words)[3]) noexcept {
  Sip s{key[0] ^ 0x736f6d6570736575ull, key[1] ^ 0x646f72616e646f6dull, key[0] ^ 0x6c7967656e657261ull,
        key[1] ^ 0x7465646279746573ull};
  constexpr uint64_t kLength = uint64_t{sizeof words} << 56;
  for (const uint64_t word : {words[0], words[1], words[2], kLength}) {
    s.v3 ^= word;
    s.rounds(2);
    s.v0 ^= word;
  }
  s.v2 ^= 0xff;
  s.rounds(4);
  return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

TagNonce random_tag_nonce() {
  TagNonce nonce;
  if (RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()), static_cast<int>(nonce.size())) != 1)
    throw Error(Code::internal, "no random bytes");
  return nonce;
}

PageTags::PageTags(const StoreKey& key, const TagNonce& nonce, SimdLevel simd) : nh_(nh_kernel(simd)) {
  derive(key, nonce, {reinterpret_cast<std::byte*>(&keys_), sizeof keys_});
}

PageTags::~PageTags() { OPENSSL_cleanse(&keys_, sizeof keys_); }

uint64_t PageTags::tag(uint64_t page, const std::byte* bytes) const noexcept {
  uint64_t sums[2];
  nh_(bytes, keys_.nh, sums);
  return siphash24(keys_.sip, {sums[0], sums[1], page});
}

uint64_t PageTags::key_check() const noexcept {
  static_assert(kMaxImagePages < ~0ull);  // the number of no page
  return siphash24(keys_.sip, {0, 0, ~0ull});
}

}  // namespace medes
