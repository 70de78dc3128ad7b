// What a page is compared with right before it is placed into a process: a tag of 64 bits that only who has
// the store's key can make. Bytes that anybody else has made up, or put in another page's place, fit one with
// a probability of 2^-63, however they were chosen: a checksum notices accidents only.
//
//   tag = SipHash-2-4(NH(bytes) | page)
//
// NH of UMAC (RFC 4418) sums products of 32-bit halves under a key as long as the page: twice, under shifted
// keys, so that two pages agree in both sums with a probability of 2^-64. SipHash, a pseudorandom function,
// hides the sums and binds them to the page's number. Both keys come out of the store's key and the image's
// nonce: tags of different images are unrelated. docs/patch-format.md says what it costs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/simd.h"
#include "common/bytes.h"
#include "common/limits.h"

namespace medes {

inline constexpr size_t kStoreKeyBytes = 32, kTagNonceBytes = 16;
using StoreKey = std::array<std::byte, kStoreKeyBytes>;
using TagNonce = std::array<std::byte, kTagNonceBytes>;

TagNonce random_tag_nonce();  // throws internal

class PageTags {
 public:
  // Throws internal.
  PageTags(const StoreKey& key, const TagNonce& nonce, SimdLevel simd = best_simd());
  ~PageTags();
  PageTags(const PageTags&) = delete;
  PageTags& operator=(const PageTags&) = delete;

  // Of kPageBytes bytes as page `page` of the image. Takes no longer for one page than for another.
  uint64_t tag(uint64_t page, const std::byte* bytes) const noexcept;
  // Tells this key from another before a page does.
  uint64_t key_check() const noexcept;

 private:
  using NhFn = void (*)(const std::byte* page, const std::byte* key, uint64_t sums[2]) noexcept;
  static constexpr size_t kShiftBytes = 64;
  struct Keys {
    std::byte nh[kPageBytes + kShiftBytes];
    uint64_t sip[2];
  };

  const NhFn nh_;
  alignas(64) Keys keys_;
};

// SipHash-2-4 of three words.
uint64_t siphash24(const uint64_t key[2], const uint64_t (&words)[3]) noexcept;

}  // namespace medes
