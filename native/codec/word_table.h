// What the word coders of all levels share: the tags' properties and where the streams lie. Internal to
// patch/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "codec/word_coder.h"

namespace medes::coder {

inline constexpr size_t kReach = 256;  // exceptions that `cached` can look back over

constexpr unsigned bit(Tag tag) { return 1u << static_cast<unsigned>(tag); }

// Sets of tags. A reference (dictionary, cached, cached2) is resolved after all others: nothing that these
// look at is a reference, and `recent` never looks at a delta, which may look at a recent.
inline constexpr unsigned kReferences = bit(Tag::dictionary) | bit(Tag::cached) | bit(Tag::cached2);
inline constexpr unsigned kSetsRecent = bit(Tag::predicted2) | bit(Tag::predicted3) | bit(Tag::predicted4) |
                                        bit(Tag::recent3) | bit(Tag::recent4) | bit(Tag::high4) |
                                        bit(Tag::small4) | bit(Tag::small6) | bit(Tag::literal);
inline constexpr unsigned kSetsDelta = kSetsRecent | bit(Tag::predicted1);
// Which literal streams a tag takes from.
inline constexpr unsigned kTakes1 =
    bit(Tag::predicted1) | bit(Tag::small1) | kReferences | bit(Tag::predicted3) | bit(Tag::recent3);
inline constexpr unsigned kTakes2 =
    bit(Tag::predicted2) | bit(Tag::cached2) | bit(Tag::predicted3) | bit(Tag::recent3) | bit(Tag::small6);
inline constexpr unsigned kTakes4 =
    bit(Tag::predicted4) | bit(Tag::recent4) | bit(Tag::high4) | bit(Tag::small4) | bit(Tag::small6);
inline constexpr unsigned kTakes8 = bit(Tag::literal);
// The 1-byte literal stands above a 2-byte one (references: so that low 16 bits are theirs alone).
inline constexpr unsigned kOneIsThird = kReferences | bit(Tag::predicted3) | bit(Tag::recent3);

constexpr uint64_t low_mask(unsigned bytes) { return bytes >= 8 ? ~0ull : (1ull << (8 * bytes)) - 1; }

// The bits of P that stay.
struct PredictedBits {
  uint64_t of[16] = {};
  constexpr PredictedBits() {
    of[static_cast<unsigned>(Tag::predicted1)] = ~low_mask(1);
    of[static_cast<unsigned>(Tag::predicted2)] = ~low_mask(2);
    of[static_cast<unsigned>(Tag::predicted3)] = ~low_mask(3);
    of[static_cast<unsigned>(Tag::predicted4)] = ~low_mask(4);
    of[static_cast<unsigned>(Tag::high4)] = low_mask(4);
  }
};
inline constexpr PredictedBits kPredicted;

// Where the streams of a payload begin.
struct Streams {
  const std::byte *tags = nullptr, *one = nullptr, *two = nullptr, *four = nullptr, *eight = nullptr;
};
// For `count` exceptions whose tags begin at `at`. False unless the streams end exactly at `end` and an
// unused last nibble is zero.
bool find_streams(const std::byte* at, const std::byte* end, size_t count, Streams& out) noexcept;

// Collected by the encoders, then put together behind the bitmap.
struct Literals {
  uint8_t one[kWordsPerPage + 64];
  uint16_t two[kWordsPerPage + 32];
  uint32_t four[kWordsPerPage + 16];
  uint64_t eight[kWordsPerPage + 8];
  size_t ones = 0, twos = 0, fours = 0, eights = 0;
};
// Appends the streams at `at`; returns the payload's length, or 0 when it would reach kPageBytes.
size_t finish(const Literals& literals, std::byte* out, std::byte* at) noexcept;

size_t encode_scalar(const WordEncoder& encoder, const uint64_t* page, const uint64_t* predicted,
                     const uint8_t* masks, std::byte* out) noexcept;
size_t encode_avx512(const WordEncoder& encoder, const uint64_t* page, const uint64_t* predicted,
                     const uint8_t* masks, std::byte* out) noexcept;
bool decode_scalar(Bytes payload, const Dictionary& dictionary, uint64_t* words) noexcept;
bool decode_avx512(Bytes payload, const Dictionary& dictionary, uint64_t* words) noexcept;

}  // namespace medes::coder
