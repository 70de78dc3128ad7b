// AES-128-GCM on 512-bit vectors (NIST SP 800-38D). 32 blocks a step: eight vectors of counters go through
// the rounds while the 32 blocks of ciphertext before them are multiplied into the GHASH, so that both units
// are busy. Nothing branches on keys or data, and no table is looked up: time tells nothing about either.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"  // the intrinsics' own "undefined" operands (GCC 12)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <cpuid.h>
#include <immintrin.h>
#include <openssl/crypto.h>

#include <cstring>

#include "transport/tls/record_cipher.h"

namespace medes {

namespace {

constexpr size_t kBlockBytes = 16, kVectorBytes = 64, kVectors = 8;
constexpr size_t kStepBytes = kVectors * kVectorBytes;
static_assert(kStepBytes == kGcmStepBytes);
constexpr int kRounds = 10, kStepBlocks = static_cast<int>(kStepBytes / kBlockBytes);

struct Key {
  __m128i round[kRounds + 1];
  __m512i powers[kVectors];  // of the hash key, H^32 … H^1, four a vector
  __m512i folded[kVectors];  // of each power the sum of its halves
};

inline __m128i byte_order() { return _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
inline __m128i reversed(__m128i x) { return _mm_shuffle_epi8(x, byte_order()); }

inline __m128i next_round_key(__m128i key, __m128i assist) {
  for (int i = 0; i < 3; ++i) key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
  return _mm_xor_si128(key, _mm_shuffle_epi32(assist, 0xff));
}

inline __m128i encrypt_block(const Key& key, __m128i block) {
  block = _mm_xor_si128(block, key.round[0]);
  for (int r = 1; r < kRounds; ++r) block = _mm_aesenc_si128(block, key.round[r]);
  return _mm_aesenclast_si128(block, key.round[kRounds]);
}

// A 256-bit product modulo the field's polynomial. Operands are bit-reflected, and one of the factors is
// shifted left by one (times_x), which leaves a reduction of two multiplications.
inline __m128i reduce(__m128i low, __m128i high) {
  const __m128i poly = _mm_set_epi64x(0, static_cast<long long>(0xc200000000000000ULL));
  for (int i = 0; i < 2; ++i)
    low = _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), _mm_clmulepi64_si128(low, poly, 0x00));
  return _mm_xor_si128(low, high);
}

inline __m128i join(__m128i low, __m128i middle, __m128i high) {
  return reduce(_mm_xor_si128(low, _mm_slli_si128(middle, 8)),
                _mm_xor_si128(high, _mm_srli_si128(middle, 8)));
}

inline __m128i multiply(__m128i a, __m128i b) {
  return join(_mm_clmulepi64_si128(a, b, 0x00),
              _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10)),
              _mm_clmulepi64_si128(a, b, 0x11));
}

inline __m128i times_x(__m128i h) {
  const __m128i carry = _mm_slli_si128(_mm_srli_epi64(h, 63), 8);
  const __m128i top = _mm_srai_epi32(_mm_shuffle_epi32(h, 0xff), 31);
  const __m128i poly = _mm_set_epi32(static_cast<int>(0xc2000000), 0, 0, 1);
  return _mm_xor_si128(_mm_or_si128(_mm_slli_epi64(h, 1), carry), _mm_and_si128(top, poly));
}

inline __m128i sum(__m512i v) {
  const __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Unreduced products of several blocks with powers of the hash key.
struct Products {
  __m512i low, middle, high;
};

inline void add_products(Products& p, __m512i blocks, __m512i power) {
  p.low = _mm512_xor_si512(p.low, _mm512_clmulepi64_epi128(blocks, power, 0x00));
  p.high = _mm512_xor_si512(p.high, _mm512_clmulepi64_epi128(blocks, power, 0x11));
  p.middle = _mm512_ternarylogic_epi64(p.middle, _mm512_clmulepi64_epi128(blocks, power, 0x01),
                                       _mm512_clmulepi64_epi128(blocks, power, 0x10), 0x96);
}

inline __m128i total(const Products& p) { return join(sum(p.low), sum(p.middle), sum(p.high)); }

// Of each block the sum of its halves, in both.
inline __m512i fold(__m512i blocks) {
  return _mm512_xor_si512(blocks, _mm512_shuffle_epi32(blocks, _MM_PERM_BADC));
}

// The same with three multiplications for four (Karatsuba), which are what takes longest here: `middle` is
// still to be added to both others. Two at once, whose products are summed on the way.
inline void add_folded_products(Products& p, __m512i a, __m512i a_power, __m512i a_folded, __m512i b,
                                __m512i b_power, __m512i b_folded) {
  const auto add = [](__m512i& to, __m512i x, __m512i y) { to = _mm512_ternarylogic_epi64(to, x, y, 0x96); };
  add(p.low, _mm512_clmulepi64_epi128(a, a_power, 0x00), _mm512_clmulepi64_epi128(b, b_power, 0x00));
  add(p.high, _mm512_clmulepi64_epi128(a, a_power, 0x11), _mm512_clmulepi64_epi128(b, b_power, 0x11));
  add(p.middle, _mm512_clmulepi64_epi128(fold(a), a_folded, 0x00),
      _mm512_clmulepi64_epi128(fold(b), b_folded, 0x00));
}

inline __m128i total_folded(Products p) {
  p.middle = _mm512_ternarylogic_epi64(p.middle, p.low, p.high, 0x96);
  return total(p);
}

inline Products no_products() {
  const __m512i zero = _mm512_setzero_si512();
  return {zero, zero, zero};
}

void expand_key(Key& key, const uint8_t* bytes) {
  __m128i r = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  key.round[0] = r;
#define MEDES_ROUND(i, constant) key.round[i] = r = next_round_key(r, _mm_aeskeygenassist_si128(r, constant))
  MEDES_ROUND(1, 0x01);
  MEDES_ROUND(2, 0x02);
  MEDES_ROUND(3, 0x04);
  MEDES_ROUND(4, 0x08);
  MEDES_ROUND(5, 0x10);
  MEDES_ROUND(6, 0x20);
  MEDES_ROUND(7, 0x40);
  MEDES_ROUND(8, 0x80);
  MEDES_ROUND(9, 0x1b);
  MEDES_ROUND(10, 0x36);
#undef MEDES_ROUND
  const __m128i h = times_x(reversed(encrypt_block(key, _mm_setzero_si128())));
  auto* powers = reinterpret_cast<uint8_t*>(key.powers);
  __m128i power = h;
  for (int i = kStepBlocks; i-- > 0; power = multiply(power, h))
    std::memcpy(powers + static_cast<size_t>(i) * kBlockBytes, &power, kBlockBytes);
  for (size_t i = 0; i < kVectors; ++i) key.folded[i] = fold(key.powers[i]);
}

// One record under way: counters, the hash so far.
class Pass {
 public:
  Pass(const Key& key, const GcmNonce& nonce, const uint8_t* header)
      : key_(key), order_(_mm512_broadcast_i32x4(byte_order())) {
    alignas(16) uint8_t first[kBlockBytes] = {}, aad[kBlockBytes] = {};
    std::memcpy(first, nonce.data(), nonce.size());
    first[15] = 1;
    std::memcpy(aad, header, kRecordHeaderBytes);
    mask_ = encrypt_block(key, _mm_load_si128(reinterpret_cast<const __m128i*>(first)));
    const __m128i counter = reversed(_mm_load_si128(reinterpret_cast<const __m128i*>(first)));
    counters_ = _mm512_add_epi32(_mm512_broadcast_i32x4(counter),
                                 _mm512_set_epi32(0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1));
    std::memcpy(&h_, reinterpret_cast<const uint8_t*>(key.powers) + (kStepBlocks - 1) * kBlockBytes,
                kBlockBytes);
    hash_ = multiply(reversed(_mm_load_si128(reinterpret_cast<const __m128i*>(aad))), h_);
  }

  // Whole steps. `ciphertext` is hashed meanwhile: when decrypting the input, when encrypting the output of
  // the step before (so that the last one is still to be hashed, see settle). `ahead` is where the plaintext
  // goes on after these: from another page no processor fetches by itself.
  template <bool kDecrypt>
  void steps(const uint8_t* in, uint8_t* out, size_t count, const uint8_t* ahead) {
    for (size_t step = 0; step < count; ++step, in += kStepBytes, out += kStepBytes) {
      const bool hashes = kDecrypt || unhashed_;
      const uint8_t* ciphertext = kDecrypt ? in : out - kStepBytes;
      const uint8_t* const plaintext = kDecrypt ? out : in;
      fetch<kDecrypt>(count - step > kAheadSteps ? plaintext + kAheadSteps * kStepBytes
                      : ahead                    ? ahead + (kAheadSteps - (count - step)) * kStepBytes
                                                 : nullptr);
      __m512i block[kVectors];
      for (__m512i& b : block) b = next_counters();
      Products products = no_products();
#pragma GCC unroll 9
      for (int r = 1; r < kRounds; ++r) {
        const __m512i round = _mm512_broadcast_i32x4(key_.round[r]);
#pragma GCC unroll 8
        for (__m512i& b : block) b = _mm512_aesenc_epi128(b, round);
        if (hashes && r % 2 == 1 && r < static_cast<int>(kVectors)) absorb_two(products, ciphertext, r - 1);
      }
      const __m512i last = _mm512_broadcast_i32x4(key_.round[kRounds]);
#pragma GCC unroll 8
      for (size_t i = 0; i < kVectors; ++i) {
        const __m512i data = _mm512_loadu_si512(in + i * kVectorBytes);
        _mm512_storeu_si512(out + i * kVectorBytes,
                            _mm512_xor_si512(_mm512_aesenclast_epi128(block[i], last), data));
      }
      if (hashes) hash_ = total_folded(products);
      unhashed_ = !kDecrypt;
    }
  }

  // Hashes the last step before `end`, if that is still to be done.
  void settle(const uint8_t* end) {
    if (!unhashed_) return;
    Products products = no_products();
    for (int i = 0; i < static_cast<int>(kVectors); i += 2) absorb_two(products, end - kStepBytes, i);
    hash_ = total_folded(products);
    unhashed_ = false;
  }

  // What is left, at most a step; `out` is a buffer of a whole one.
  template <bool kDecrypt>
  void rest(const uint8_t* in, uint8_t* out, size_t n) {
    const int blocks = static_cast<int>((n + kBlockBytes - 1) / kBlockBytes);
    const auto* powers = reinterpret_cast<const uint8_t*>(key_.powers) +
                         static_cast<size_t>(kStepBlocks - blocks) * kBlockBytes;
    Products products = no_products();
    for (size_t done = 0; done < n; done += kVectorBytes) {
      const size_t bytes = n - done < kVectorBytes ? n - done : kVectorBytes;
      const __mmask64 mask = bytes == kVectorBytes ? ~0ULL : (1ULL << bytes) - 1;
      const __m512i data = _mm512_maskz_loadu_epi8(mask, in + done);
      __m512i b = next_counters();
      for (int r = 1; r < kRounds; ++r) b = _mm512_aesenc_epi128(b, _mm512_broadcast_i32x4(key_.round[r]));
      b = _mm512_aesenclast_epi128(b, _mm512_broadcast_i32x4(key_.round[kRounds]));
      const __m512i result = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(b, data));
      _mm512_storeu_si512(out + done, result);
      const int vector_blocks = static_cast<int>((bytes + kBlockBytes - 1) / kBlockBytes);
      const auto lanes = static_cast<__mmask8>((1U << (2 * vector_blocks)) - 1);
      const __m512i power = _mm512_maskz_loadu_epi64(lanes, powers + done);
      __m512i hashed = _mm512_shuffle_epi8(kDecrypt ? data : result, order_);
      if (done == 0) hashed = _mm512_xor_si512(hashed, _mm512_zextsi128_si512(hash_));
      add_products(products, hashed, power);
    }
    hash_ = total(products);
  }

  __m128i tag(size_t n) const {
    const __m128i lengths =
        _mm_set_epi64x(static_cast<long long>(kRecordHeaderBytes * 8), static_cast<long long>(n * 8));
    return _mm_xor_si128(reversed(multiply(_mm_xor_si128(hash_, lengths), h_)), mask_);
  }

 private:
  __m512i next_counters() {
    const __m512i four = _mm512_set_epi32(0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4);
    const __m512i b =
        _mm512_xor_si512(_mm512_shuffle_epi8(counters_, order_), _mm512_broadcast_i32x4(key_.round[0]));
    counters_ = _mm512_add_epi32(counters_, four);
    return b;
  }
  __m512i ciphertext_block(const uint8_t* ciphertext, int i) const {
    return _mm512_shuffle_epi8(_mm512_loadu_si512(ciphertext + static_cast<size_t>(i) * kVectorBytes),
                               order_);
  }
  // Vectors i and i + 1 of a step's ciphertext.
  void absorb_two(Products& p, const uint8_t* ciphertext, int i) const {
    __m512i a = ciphertext_block(ciphertext, i);
    if (i == 0) a = _mm512_xor_si512(a, _mm512_zextsi128_si512(hash_));
    add_folded_products(p, a, key_.powers[i], key_.folded[i], ciphertext_block(ciphertext, i + 1),
                        key_.powers[i + 1], key_.folded[i + 1]);
  }

  template <bool kForWriting>
  static void fetch(const uint8_t* from) {
    if (!from) return;
    for (size_t i = 0; i < kStepBytes; i += 64) __builtin_prefetch(from + i, kForWriting, 3);
  }

  static constexpr size_t kAheadSteps = 4;

  const Key& key_;
  __m512i order_, counters_;
  __m128i mask_, h_, hash_;
  bool unhashed_ = false;
};

class VectorCipher final : public RecordCipher {
 public:
  explicit VectorCipher(const uint8_t* key) { expand_key(key_, key); }
  ~VectorCipher() override { OPENSSL_cleanse(&key_, sizeof key_); }

  void seal(const GcmNonce& nonce, const uint8_t* header, std::span<const iovec> in, uint8_t type,
            uint8_t* out, const uint8_t* ahead) override {
    Pass pass(key_, nonce, header);
    size_t n = 0, left = 0;
    const uint8_t* rest_of = nullptr;
    for (size_t i = 0; i < in.size(); ++i) {
      const auto* const part = static_cast<const uint8_t*>(in[i].iov_base);
      const size_t whole = in[i].iov_len / kStepBytes * kStepBytes;
      pass.steps<false>(part, out, whole / kStepBytes, next_part(in, i, ahead));
      out += whole, n += in[i].iov_len;
      left = in[i].iov_len - whole, rest_of = part + whole;
    }
    pass.settle(out);
    alignas(64) uint8_t rest[kStepBytes], sealed[kStepBytes];
    if (left > 0) std::memcpy(rest, rest_of, left);
    rest[left] = type;
    pass.rest<false>(rest, sealed, left + 1);
    std::memcpy(out, sealed, left + 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + left + 1), pass.tag(n + 1));
  }

  bool open(const GcmNonce& nonce, const uint8_t* header, const uint8_t* in, std::span<const iovec> out,
            uint8_t& type, const uint8_t* ahead) override {
    Pass pass(key_, nonce, header);
    size_t n = 0, left = 0;
    uint8_t* rest_of = nullptr;
    for (size_t i = 0; i < out.size(); ++i) {
      auto* const part = static_cast<uint8_t*>(out[i].iov_base);
      const size_t whole = out[i].iov_len / kStepBytes * kStepBytes;
      pass.steps<true>(in, part, whole / kStepBytes, next_part(out, i, ahead));
      in += whole, n += out[i].iov_len;
      left = out[i].iov_len - whole, rest_of = part + whole;
    }
    alignas(64) uint8_t opened[kStepBytes];
    pass.rest<true>(in, opened, left + 1);
    if (left > 0) std::memcpy(rest_of, opened, left);
    type = opened[left];
    alignas(16) uint8_t tag[kGcmTagBytes];
    _mm_store_si128(reinterpret_cast<__m128i*>(tag), pass.tag(n + 1));
    return CRYPTO_memcmp(tag, in + left + 1, kGcmTagBytes) == 0;
  }

 private:
  static const uint8_t* next_part(std::span<const iovec> parts, size_t i, const uint8_t* ahead) {
    return i + 1 < parts.size() ? static_cast<const uint8_t*>(parts[i + 1].iov_base) : ahead;
  }

  Key key_;
};

}  // namespace

bool has_vector_cipher() {
  static const bool found = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kVaes = 1U << 9, kVpclmulqdq = 1U << 10;  // which not every compiler knows by name
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & kVaes) && (c & kVpclmulqdq) &&
           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  }();
  return found;
}

std::unique_ptr<RecordCipher> make_vector_cipher(const uint8_t* key) {
  return std::make_unique<VectorCipher>(key);
}

}  // namespace medes
