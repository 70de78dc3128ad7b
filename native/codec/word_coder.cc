#include "codec/word_coder.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "codec/word_table.h"

namespace medes {
namespace coder {
namespace {

constexpr struct BitCounts {
  uint8_t of[256] = {};
  constexpr BitCounts() {
    for (unsigned i = 1; i < 256; ++i) of[i] = static_cast<uint8_t>(of[i / 2] + i % 2);
  }
} kBits;  // std::popcount is a library call on baseline x86-64

uint64_t load(const std::byte* p, size_t bytes) {
  uint64_t v = 0;
  std::memcpy(&v, p, bytes);
  return v;
}

// Literals of two tags by their byte: four counts of 16 bits.
struct Takes {
  uint64_t of[256] = {};
  constexpr Takes() {
    for (unsigned i = 0; i < 256; ++i) of[i] = one(i & 15) + one(i >> 4);
  }
  static constexpr uint64_t one(unsigned tag) {
    return uint64_t{kTakes1 >> tag & 1} | uint64_t{kTakes2 >> tag & 1} << 16 |
           uint64_t{kTakes4 >> tag & 1} << 32 | uint64_t{kTakes8 >> tag & 1} << 48;
  }
};
constexpr Takes kTakes;

constexpr bool in(unsigned set, unsigned tag) { return (set >> tag & 1) != 0; }
constexpr unsigned number(Tag tag) { return static_cast<unsigned>(tag); }

// The cheapest tag that looks at nothing but W and P.
unsigned plain_tag(uint64_t w, uint64_t p) {
  const uint64_t x = w ^ p;
  if (w == 0) return number(Tag::zero);
  if (x >> 8 == 0) return number(Tag::predicted1);
  if (w >> 8 == 0) return number(Tag::small1);
  if (x >> 16 == 0) return number(Tag::predicted2);
  if (x >> 24 == 0) return number(Tag::predicted3);
  if (x >> 32 == 0) return number(Tag::predicted4);
  if (static_cast<uint32_t>(x) == 0) return number(Tag::high4);
  if (w >> 32 == 0) return number(Tag::small4);
  if (w >> 48 == 0) return number(Tag::small6);
  return number(Tag::literal);
}

void put_literals(Literals& l, unsigned tag, uint64_t w, uint8_t index) {
  if (in(kTakes1, tag)) {
    l.one[l.ones++] = in(kReferences, tag) ? index : static_cast<uint8_t>(in(kOneIsThird, tag) ? w >> 16 : w);
  }
  if (in(kTakes2, tag)) l.two[l.twos++] = static_cast<uint16_t>(tag == number(Tag::small6) ? w >> 32 : w);
  if (in(kTakes4, tag)) l.four[l.fours++] = static_cast<uint32_t>(tag == number(Tag::high4) ? w >> 32 : w);
  if (in(kTakes8, tag)) l.eight[l.eights++] = w;
}

}  // namespace

bool find_streams(const std::byte* at, const std::byte* end, size_t count, Streams& out) noexcept {
  const size_t tag_bytes = (count + 1) / 2;
  if (static_cast<size_t>(end - at) < tag_bytes) return false;
  uint64_t taken = 0;
  for (size_t i = 0; i < tag_bytes; ++i) taken += kTakes.of[static_cast<unsigned>(at[i])];
  if (count % 2 != 0 && static_cast<unsigned>(at[tag_bytes - 1]) >> 4 != 0) return false;
  out.tags = at;
  out.one = at + tag_bytes;
  const size_t ones = taken & 0xffff, twos = taken >> 16 & 0xffff, fours = taken >> 32 & 0xffff;
  const size_t bytes = ones + 2 * twos + 4 * fours + 8 * (taken >> 48);
  if (static_cast<size_t>(end - out.one) != bytes) return false;
  out.two = out.one + ones;
  out.four = out.two + 2 * twos;
  out.eight = out.four + 4 * fours;
  return true;
}

size_t finish(const Literals& l, std::byte* out, std::byte* at) noexcept {
  const size_t bytes = l.ones + 2 * l.twos + 4 * l.fours + 8 * l.eights;
  const size_t size = static_cast<size_t>(at - out) + bytes;
  if (size >= kPageBytes) return 0;
  std::memcpy(at, l.one, l.ones);
  at += l.ones;
  std::memcpy(at, l.two, 2 * l.twos);
  at += 2 * l.twos;
  std::memcpy(at, l.four, 4 * l.fours);
  at += 4 * l.fours;
  std::memcpy(at, l.eight, 8 * l.eights);
  return size;
}

size_t encode_scalar(const WordEncoder& encoder, const uint64_t* page, const uint64_t* predicted,
                     const uint8_t* masks, std::byte* out) noexcept {
  uint64_t padded[1 + kWordsPerPage] = {}, expected[kWordsPerPage];
  uint64_t* const words = padded + 1;
  uint8_t tags[kWordsPerPage], index[kWordsPerPage];
  std::byte* at = out + 8;
  uint64_t lines = 0;
  size_t count = 0;
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    if (masks[line] == 0) continue;
    lines |= 1ull << line;
    *at++ = static_cast<std::byte>(masks[line]);
    for (unsigned mask = masks[line]; mask != 0; mask &= mask - 1) {
      const size_t i = line * 8 + static_cast<size_t>(std::countr_zero(mask));
      words[count] = page[i];
      expected[count] = predicted[i];
      tags[count++] = static_cast<uint8_t>(plain_tag(page[i], predicted[i]));
    }
  }
  std::memcpy(out, &lines, sizeof lines);
  encoder.find_references(words, count, tags, index);

  Literals literals;
  uint64_t delta = 0, recent = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t w = words[i], p = expected[i];
    unsigned tag = tags[i];
    if (tag > number(Tag::delta) && w - p == delta) {
      tag = number(Tag::delta);
    } else {
      if (in(kSetsDelta, tag)) delta = w - p;
      if (in(kSetsRecent, tag)) {
        const uint64_t y = w ^ recent;
        if (tag > number(Tag::recent3) && y >> 24 == 0) {
          tag = number(Tag::recent3);
        } else if (tag > number(Tag::recent4) && y >> 32 == 0) {
          tag = number(Tag::recent4);
        }
        recent = w;
      }
    }
    if (i % 2 == 0) {
      at[i / 2] = static_cast<std::byte>(tag);
    } else {
      at[i / 2] |= static_cast<std::byte>(tag << 4);
    }
    put_literals(literals, tag, w, index[i]);
  }
  return finish(literals, out, at + (count + 1) / 2);
}

bool decode_scalar(Bytes payload, const Dictionary& dictionary, uint64_t* words) noexcept {
  if (payload.size() < 8) return false;
  const std::byte* const end = payload.data() + payload.size();
  const std::byte* at = payload.data() + 8;
  uint8_t masks[kLinesPerPage] = {};
  size_t count = 0;
  const uint64_t lines = load(payload.data(), 8);
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    if ((lines >> line & 1) == 0) continue;
    if (at == end) return false;
    masks[line] = static_cast<uint8_t>(*at++);
    count += kBits.of[masks[line]];
  }
  Streams s;
  if (!find_streams(at, end, count, s)) return false;

  uint64_t padded[kReach + kWordsPerPage] = {};  // 0 before the first
  uint64_t* const done = padded + kReach;
  uint64_t delta = 0, recent = 0;
  size_t i = 0;
  // References look back at any exception, others at none: W is known in order.
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    for (unsigned mask = masks[line]; mask != 0; mask &= mask - 1, ++i) {
      uint64_t& word = words[line * 8 + static_cast<size_t>(std::countr_zero(mask))];
      const unsigned tag = static_cast<unsigned>(s.tags[i / 2]) >> (i % 2 * 4) & 15;
      uint64_t one = 0, two = 0, four = 0, w = 0;
      if (in(kTakes1, tag)) one = load(s.one++, 1);
      if (in(kTakes2, tag)) two = load(s.two, 2), s.two += 2;
      if (in(kTakes4, tag)) four = load(s.four, 4), s.four += 4;
      switch (static_cast<Tag>(tag)) {
        case Tag::zero: break;
        case Tag::delta: w = word + delta; break;
        case Tag::dictionary: w = dictionary.words[one]; break;
        case Tag::cached: w = *(done + i - 1 - one); break;
        case Tag::cached2: w = (*(done + i - 1 - one) & ~low_mask(2)) | two; break;
        case Tag::predicted1:
        case Tag::small1: w = (word & kPredicted.of[tag]) | one; break;
        case Tag::predicted2: w = (word & kPredicted.of[tag]) | two; break;
        case Tag::predicted3: w = (word & kPredicted.of[tag]) | one << 16 | two; break;
        case Tag::recent3: w = (recent & ~low_mask(3)) | one << 16 | two; break;
        case Tag::recent4: w = (recent & ~low_mask(4)) | four; break;
        case Tag::predicted4:
        case Tag::small4: w = (word & kPredicted.of[tag]) | four; break;
        case Tag::high4: w = (word & kPredicted.of[tag]) | four << 32; break;
        case Tag::small6: w = two << 32 | four; break;
        case Tag::literal: w = load(s.eight, 8), s.eight += 8; break;
      }
      if (in(kSetsDelta, tag)) delta = w - word;
      if (in(kSetsRecent, tag)) recent = w;
      done[i] = w;
      word = w;
    }
  }
  return true;
}

}  // namespace coder

namespace {

constexpr uint64_t kHash = 0x9e3779b97f4a7c15ull;

}  // namespace

WordEncoder::WordEncoder(const Dictionary& dictionary, SimdLevel level)
    : dictionary_(dictionary), level_(level) {
  std::memset(dictionary_at_, 0, sizeof dictionary_at_);
  for (size_t i = kDictionaryWords; i-- > 0;) {
    dictionary_at_[dictionary.words[i] * kHash >> 54] = static_cast<uint8_t>(i);
  }
}

size_t WordEncoder::encode(const uint64_t* page, const uint64_t* predicted, const uint8_t* masks,
                           std::byte* out) const noexcept {
#if defined(__x86_64__)
  if (level_ == SimdLevel::avx512) return coder::encode_avx512(*this, page, predicted, masks, out);
#endif
  return coder::encode_scalar(*this, page, predicted, masks, out);
}

// Where a word was last seen is a hint, checked on use: the format does not depend on what is found. No
// branch depends on the data but the loops' ends: which of four choices a word gets is a shift.
void WordEncoder::find_references(const uint64_t* words, size_t count, uint8_t* tags,
                                  uint8_t* index) const noexcept {
  constexpr uint32_t kReferenceTags = static_cast<uint32_t>(Tag::cached2) << 8 |
                                      static_cast<uint32_t>(Tag::cached) << 16 |
                                      static_cast<uint32_t>(Tag::dictionary) << 24;
  // By is_near + 2 is_seen + 4 is_known: 8 times the number of the best.
  constexpr uint64_t kBest = 0x18181818'10100800ull;
  uint16_t wanted[kWordsPerPage + 1];
  size_t wanted_count = 0;
  for (size_t i = 0; i < count; ++i) {
    wanted[wanted_count] = static_cast<uint16_t>(i);
    wanted_count += tags[i] >= static_cast<uint8_t>(Tag::predicted2);
  }
  // The last place a word was seen at, modulo the reach; what was never seen may come out anywhere, and what
  // comes out before the first word is the zero there.
  alignas(64) struct {
    uint8_t whole[256], upper[256];
  } seen = {};
  const auto look = [words](size_t i, uint8_t back) {
    const auto at = static_cast<ptrdiff_t>(i) - 1 - back;
    return words[at < -1 ? -1 : at];
  };
  for (size_t n = 0; n < wanted_count; ++n) {
    const size_t i = wanted[n];
    const uint64_t w = words[i], hash = w * kHash, upper_hash = (w >> 16) * kHash;
    const uint32_t known = dictionary_at_[hash >> 54];
    uint8_t& whole = seen.whole[hash >> 56];
    uint8_t& upper = seen.upper[upper_hash >> 56];
    const auto back = static_cast<uint8_t>(i - whole - 1), near_back = static_cast<uint8_t>(i - upper - 1);
    const uint32_t is_known = dictionary_.words[known] == w;
    const uint32_t is_seen = look(i, back) == w;
    const uint32_t is_near = uint32_t{(look(i, near_back) ^ w) >> 16 == 0} &
                             uint32_t{tags[i] > static_cast<uint8_t>(Tag::predicted3)};
    const auto best = static_cast<unsigned>(kBest >> (8 * (is_near + 2 * is_seen + 4 * is_known)) & 0xff);
    const uint32_t places = uint32_t{near_back} << 8 | uint32_t{back} << 16 | known << 24;
    index[i] = static_cast<uint8_t>(places >> best);
    tags[i] = static_cast<uint8_t>((tags[i] | kReferenceTags) >> best);
    whole = static_cast<uint8_t>(i);
    upper = static_cast<uint8_t>(i);
  }
}

DecodeWordsFn decode_words_kernel(SimdLevel level) {
#if defined(__x86_64__)
  if (level == SimdLevel::avx512) return coder::decode_avx512;
#endif
  (void)level;
  return coder::decode_scalar;
}

uint64_t lines_of(const LineMap& map, size_t window) noexcept {
  uint64_t lines = 0;
  for (size_t i = 0; i < kLinesPerPage; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, map.window + i, sizeof eight);
    // Numbers are below 4: the low bit of a byte says whether it differs from `window`; then eight bytes to
    // bits.
    const uint64_t x = eight ^ window * 0x0101010101010101ull;
    const uint64_t differ = (x | x >> 1) & 0x0101010101010101ull;
    lines |= (~(differ * 0x0102040810204080ull >> 56) & 0xff) << i;
  }
  return lines;
}

size_t encode_line_map(const LineMap& map, std::byte* out) noexcept {
  uint8_t changed[kLinesPerPage / 8] = {};
  uint8_t ids[kLinesPerPage / 4] = {};
  size_t changes = 0;
  unsigned current = 0;
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    if (map.window[line] == current) continue;
    current = map.window[line];
    changed[line / 8] |= static_cast<uint8_t>(1u << (line % 8));
    ids[changes / 4] |= static_cast<uint8_t>(current << (changes % 4 * 2));
    ++changes;
  }
  std::byte* at = out + 1;
  unsigned top = 0;
  for (unsigned g = 0; g < 8; ++g) {
    if (changed[g] == 0) continue;
    top |= 1u << g;
    *at++ = static_cast<std::byte>(changed[g]);
  }
  *out = static_cast<std::byte>(top);
  for (size_t i = 0; i < (changes + 3) / 4; ++i) *at++ = static_cast<std::byte>(ids[i]);
  return static_cast<size_t>(at - out);
}

size_t decode_line_map(Bytes payload, size_t window_count, LineMap& map) noexcept {
  if (payload.empty()) return SIZE_MAX;
  const unsigned top = static_cast<unsigned>(payload[0]);
  const size_t groups = size_t{static_cast<size_t>(std::popcount(top))};
  if (payload.size() < 1 + groups) return SIZE_MAX;
  uint64_t changed = 0;
  size_t at = 1;
  for (unsigned rest = top; rest != 0; rest &= rest - 1) {
    changed |= uint64_t{static_cast<uint8_t>(payload[at++])} << (8 * std::countr_zero(rest));
  }
  const size_t changes = static_cast<size_t>(std::popcount(changed));
  if (payload.size() < at + (changes + 3) / 4) return SIZE_MAX;
  unsigned current = 0;
  size_t change = 0;
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    if (changed >> line & 1) {
      current = static_cast<unsigned>(payload[at + change / 4]) >> (change % 4 * 2) & 3;
      if (current >= window_count) return SIZE_MAX;
      ++change;
    }
    map.window[line] = static_cast<uint8_t>(current);
  }
  return at + (changes + 3) / 4;
}

}  // namespace medes
