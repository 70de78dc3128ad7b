#include "patch/word_coder.h"

#include <bit>
#include <cstring>

namespace medes {
namespace {

constexpr size_t kCacheWords = 16;

enum Source : uint8_t { kFromZero, kFromPredicted, kFromDelta, kFromRecent, kFromCache, kFromDictionary };

// One row a tag: W = (source & keep) + ((literal & literal_mask) << shift).
struct TagRow {
  uint64_t keep, literal_mask;
  uint8_t source;
  uint8_t literal_bytes;
  uint8_t shift;
  uint8_t is_new;  // W enters the cache
};

constexpr uint64_t low_mask(int bytes) { return bytes >= 8 ? ~0ull : (1ull << (8 * bytes)) - 1; }
constexpr TagRow low_of(Source source, int bytes, bool is_new) {
  return {~low_mask(bytes), low_mask(bytes), source, static_cast<uint8_t>(bytes), 0, is_new};
}

constexpr TagRow kRows[16] = {
    {0, 0, kFromZero, 0, 0, 0},                            // zero
    {~0ull, 0, kFromDelta, 0, 0, 0},                       // delta
    {~0ull, 0, kFromCache, 0, 0, 0},                       // cached
    low_of(kFromPredicted, 1, false),                      // predicted1
    low_of(kFromZero, 1, false),                           // small1
    {~0ull, 0, kFromDictionary, 1, 0, 0},                  // dictionary
    low_of(kFromPredicted, 2, true),                       // predicted2
    low_of(kFromCache, 2, true),                           // cached2
    low_of(kFromPredicted, 3, true),                       // predicted3
    low_of(kFromRecent, 3, true),                          // recent3
    low_of(kFromPredicted, 4, true),                       // predicted4
    low_of(kFromRecent, 4, true),                          // recent4
    {low_mask(4), low_mask(4), kFromPredicted, 4, 32, 1},  // high4
    low_of(kFromZero, 4, true),                            // small4
    low_of(kFromZero, 6, true),                            // small6
    low_of(kFromZero, 8, true),                            // literal
};

constexpr struct BitCounts {
  uint8_t of[256] = {};
  constexpr BitCounts() {
    for (unsigned i = 1; i < 256; ++i) of[i] = static_cast<uint8_t>(of[i / 2] + i % 2);
  }
} kBits;  // std::popcount is a library call on baseline x86-64

uint64_t load64(const std::byte* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
void store64(std::byte* p, uint64_t v) { std::memcpy(p, &v, sizeof v); }

// What encoder and decoder both carry from exception to exception.
struct State {
  explicit State(const Dictionary& dictionary) : recent(dictionary.words[0]) {
    std::memcpy(cache, dictionary.words, sizeof cache);
  }

  uint64_t cache[kCacheWords];
  uint64_t recent;     // cache[newest]
  uint64_t delta = 0;  // W - P of the last exception
  uint32_t newest = 0;

  // Without a branch: whether a word is new is close to a coin toss.
  void advance(uint64_t word, uint64_t predicted, bool is_new) {
    delta = word - predicted;
    newest = (newest + is_new) & (kCacheWords - 1);
    recent = is_new ? word : recent;
    cache[newest] = recent;
  }
};

// Bitmap of 64 lines' masks in three levels: 1 byte for eight groups of lines, 1 for the lines of each group
// that has any, 1 for the words of each such line.
std::byte* put_bitmap(const uint8_t* masks, std::byte* out) {
  std::byte* const top = out++;
  std::byte groups[8];
  unsigned top_bits = 0;
  for (unsigned g = 0; g < 8; ++g) {
    const uint64_t lines = load64(reinterpret_cast<const std::byte*>(masks) + g * 8);
    if (lines == 0) continue;
    unsigned bits = 0;
    for (unsigned l = 0; l < 8; ++l) bits |= unsigned{masks[g * 8 + l] != 0} << l;
    groups[g] = static_cast<std::byte>(bits);
    top_bits |= 1u << g;
  }
  *top = static_cast<std::byte>(top_bits);
  for (unsigned rest = top_bits; rest != 0; rest &= rest - 1) *out++ = groups[std::countr_zero(rest)];
  for (unsigned rest = top_bits; rest != 0; rest &= rest - 1) {
    const unsigned g = static_cast<unsigned>(std::countr_zero(rest));
    for (unsigned lines = static_cast<unsigned>(groups[g]); lines != 0; lines &= lines - 1) {
      *out++ = static_cast<std::byte>(masks[g * 8 + static_cast<unsigned>(std::countr_zero(lines))]);
    }
  }
  return out;
}

// The inverse for a payload of `size` bytes; returns the bytes read or SIZE_MAX.
size_t get_bitmap(const std::byte* in, size_t size, uint8_t* masks) {
  std::memset(masks, 0, kLinesPerPage);
  if (size < 1) return SIZE_MAX;
  const unsigned top_bits = static_cast<unsigned>(in[0]);
  size_t groups_at = 1;
  size_t at = 1 + kBits.of[top_bits];
  if (at > size) return SIZE_MAX;
  for (unsigned rest = top_bits; rest != 0; rest &= rest - 1) {
    const unsigned g = static_cast<unsigned>(std::countr_zero(rest));
    unsigned lines = static_cast<unsigned>(in[groups_at++]);
    if (at + kBits.of[lines] > size) return SIZE_MAX;
    for (; lines != 0; lines &= lines - 1) {
      masks[g * 8 + static_cast<unsigned>(std::countr_zero(lines))] = static_cast<uint8_t>(in[at++]);
    }
  }
  return at;
}

size_t hash_word(uint64_t w) { return w * 0x9e3779b97f4a7c15ull >> 54; }  // 10 bits

// Where the encoder last saw a word, and one with the same upper six bytes, enter the cache. Hints, checked
// on use: the format does not depend on what the encoder finds.
struct CacheHints {
  uint8_t whole[64] = {}, upper[64] = {};

  static size_t slot(uint64_t w) { return hash_word(w) >> 4; }
  void add(uint64_t w, uint32_t index) {
    whole[slot(w)] = static_cast<uint8_t>(index);
    upper[slot(w >> 16)] = static_cast<uint8_t>(index);
  }
};

constexpr unsigned bit(Tag tag) { return 1u << static_cast<unsigned>(tag); }

// Tags that need at most n literal bytes, n = 1 … 8, by how many low bytes of W differ from their source.
struct TagsByBytes {
  uint16_t of[8];
};
constexpr TagsByBytes kPredictedTags = {
    {bit(Tag::predicted1), bit(Tag::predicted2), bit(Tag::predicted3), bit(Tag::predicted4), 0, 0, 0, 0}};
constexpr TagsByBytes kRecentTags = {
    {bit(Tag::recent3), bit(Tag::recent3), bit(Tag::recent3), bit(Tag::recent4), 0, 0, 0, 0}};
constexpr TagsByBytes kSmallTags = {{bit(Tag::small1), bit(Tag::small4), bit(Tag::small4), bit(Tag::small4),
                                     bit(Tag::small6), bit(Tag::small6), 0, 0}};

// Whether a word enters the cache does not depend on what stands in `recent`: that keeps the loop's chain
// short.
constexpr unsigned kKnownTags = bit(Tag::zero) | bit(Tag::delta) | bit(Tag::cached) | bit(Tag::predicted1) |
                                bit(Tag::small1) | bit(Tag::dictionary);
constexpr bool rows_agree_with_known_tags() {
  for (unsigned t = 0; t < 16; ++t) {
    if ((kRows[t].is_new != 0) == ((kKnownTags >> t & 1) != 0)) return false;
  }
  return true;
}
static_assert(rows_agree_with_known_tags());

unsigned bytes_less_one(uint64_t x) { return (63u - static_cast<unsigned>(std::countl_zero(x | 1))) >> 3; }

}  // namespace

WordEncoder::WordEncoder(const Dictionary& dictionary) : dictionary_(dictionary) {
  std::memset(dictionary_at_, 0, sizeof dictionary_at_);
  for (size_t i = kDictionaryWords; i-- > 0;) {
    dictionary_at_[hash_word(dictionary.words[i])] = static_cast<uint8_t>(i);
  }
}

size_t WordEncoder::encode(const uint64_t* page, const uint64_t* predicted, const uint8_t* masks,
                           std::byte* out) noexcept {
  std::byte* at = put_bitmap(masks, out);
  uint8_t nibbles[kWordsPerPage * 2 + 2];
  size_t count = 0;
  State state(dictionary_);
  CacheHints hints;
  for (uint32_t i = 0; i < kCacheWords; ++i) hints.add(state.cache[i], i);
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    if (at - out >= static_cast<ptrdiff_t>(kPageBytes)) return 0;
    for (unsigned mask = masks[line]; mask != 0; mask &= mask - 1) {
      const size_t i = line * 8 + static_cast<size_t>(std::countr_zero(mask));
      const uint64_t w = page[i], p = predicted[i];
      // Tags stand in order of cost, so the lowest set bit is the choice; no branch depends on the data.
      const size_t hash = hash_word(w);
      uint8_t& seen = hints.whole[hash >> 4];
      uint8_t& near = hints.upper[CacheHints::slot(w >> 16)];
      const uint8_t known = dictionary_at_[hash];
      unsigned tags = bit(Tag::literal) | kPredictedTags.of[bytes_less_one(w ^ p)] |
                      kRecentTags.of[bytes_less_one(w ^ state.recent)] | kSmallTags.of[bytes_less_one(w)];
      tags |= unsigned{w == 0} << static_cast<unsigned>(Tag::zero);
      tags |= unsigned{w == p + state.delta} << static_cast<unsigned>(Tag::delta);
      tags |= unsigned{w == state.cache[seen]} << static_cast<unsigned>(Tag::cached);
      tags |= unsigned{w == dictionary_.words[known]} << static_cast<unsigned>(Tag::dictionary);
      tags |= unsigned{(w ^ state.cache[near]) >> 16 == 0} << static_cast<unsigned>(Tag::cached2);
      tags |= unsigned{static_cast<uint32_t>(w ^ p) == 0} << static_cast<unsigned>(Tag::high4);
      const bool is_new = (tags & kKnownTags) == 0;  // what row.is_new says, without waiting for the row
      const unsigned tag = static_cast<unsigned>(std::countr_zero(tags));
      const TagRow& row = kRows[tag];
      store64(at, row.source == kFromDictionary ? known : w >> row.shift);
      at += row.literal_bytes;
      nibbles[count] = static_cast<uint8_t>(tag);
      nibbles[count + 1] = tag == static_cast<unsigned>(Tag::cached) ? seen : near;
      count += 1 + (row.source == kFromCache);
      state.advance(w, p, is_new);
      seen = is_new ? static_cast<uint8_t>(state.newest) : seen;
      near = is_new ? static_cast<uint8_t>(state.newest) : near;
    }
  }
  const size_t nibble_bytes = (count + 1) / 2;
  const size_t size = static_cast<size_t>(at - out) + nibble_bytes;
  if (size >= kPageBytes) return 0;
  nibbles[count] = 0;
  for (size_t i = 0; i < nibble_bytes; ++i) {
    out[size - 1 - i] = static_cast<std::byte>(nibbles[2 * i] | nibbles[2 * i + 1] << 4);
  }
  return size;
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
  const size_t groups = size_t{kBits.of[top]};
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

bool decode_words(Bytes payload, const Dictionary& dictionary, uint64_t* words) noexcept {
  uint8_t masks[kLinesPerPage];
  const size_t header = get_bitmap(payload.data(), payload.size(), masks);
  if (header == SIZE_MAX) return false;
  const std::byte* const bytes = payload.data();
  const size_t size = payload.size();
  size_t literal = header;  // next literal byte
  size_t nibble = 0;        // next nibble; nibble n is in byte size - 1 - n / 2
  State state(dictionary);
  const auto peek = [bytes, size](size_t n) {
    return static_cast<unsigned>(bytes[size - 1 - n / 2]) >> (n % 2 * 4) & 15;
  };
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    for (unsigned mask = masks[line]; mask != 0; mask &= mask - 1) {
      // Both streams are checked after each step, before the next: literal >= 1 and literal + (nibble + 1) /
      // 2 <= size keep the two peeks inside the payload and the literal inside it and its padding.
      uint64_t& word = words[line * 8 + static_cast<size_t>(std::countr_zero(mask))];
      if (literal + nibble / 2 >= size) return false;
      const TagRow& row = kRows[peek(nibble)];
      const uint64_t raw = load64(bytes + literal);
      const uint64_t sources[6] = {0,
                                   word,
                                   word + state.delta,
                                   state.recent,
                                   state.cache[peek(nibble + 1)],
                                   dictionary.words[raw & 0xff]};
      const uint64_t w = (sources[row.source] & row.keep) + ((raw & row.literal_mask) << row.shift);
      nibble += 1 + (row.source == kFromCache);
      literal += row.literal_bytes;
      if (literal + (nibble + 1) / 2 > size) return false;
      state.advance(w, word, row.is_new != 0);
      word = w;
    }
  }
  // Every byte is used, and an odd last nibble is zero.
  return literal + (nibble + 1) / 2 == size && (nibble % 2 == 0 || peek(nibble) == 0);
}

}  // namespace medes
