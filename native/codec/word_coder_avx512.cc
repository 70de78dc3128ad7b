// Eight exceptions at a time; encode_scalar and decode_scalar say what must come out.
#include "codec/word_table.h"

#if defined(__AVX512F__)
// GCC 12 warns of its own header's undefined-value idiom (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace medes::coder {
namespace {

inline unsigned ones_of(unsigned mask) { return static_cast<unsigned>(__builtin_popcount(mask)); }
inline __m512i all(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }

// Which of the eight tags are in a set.
inline __mmask8 in(unsigned set, __m512i tags) {
  const __m512i bits = _mm512_srlv_epi64(all(set), tags);
  return _mm512_test_epi64_mask(bits, all(1));
}

// Per lane the value of the highest lane of `set` up to it (`inclusive`) or before it; of the carry where
// there is none.
inline __m512i fill(__mmask8 set, __m512i values, __m512i carry, bool inclusive) {
  const __m512i before = inclusive ? _mm512_setr_epi64(1, 3, 7, 15, 31, 63, 127, 255)
                                   : _mm512_setr_epi64(0, 1, 3, 7, 15, 31, 63, 127);
  const __m512i candidates = _mm512_and_si512(all(set), before);
  const __m512i lane = _mm512_sub_epi64(all(63), _mm512_lzcnt_epi64(candidates));
  return _mm512_mask_permutexvar_epi64(carry, _mm512_test_epi64_mask(candidates, candidates), lane, values);
}

// The value of the highest lane of `set` in every lane, or the carry.
inline __m512i last(__mmask8 set, __m512i values, __m512i carry) {
  const auto lane = static_cast<unsigned>(31 - __builtin_clz(set | 1u));
  return _mm512_mask_permutexvar_epi64(carry, set == 0 ? 0 : 0xff, all(lane), values);
}

constexpr uint64_t kBytes = 0x0101010101010101ull, kNibbles = 0x0f0f0f0f0f0f0f0full;

// A group of eight masks ↔ the bytes of those that are not zero.
inline uint64_t bytes_set(unsigned bits) { return _pdep_u64(bits, kBytes) * 0xff; }

// Moves the words at the masks' bits together.
inline size_t gather_words(const uint64_t* words, const uint8_t* masks, uint64_t lines, uint64_t* out) {
  size_t count = 0;
  for (; lines != 0; lines = _blsr_u64(lines)) {
    const auto line = static_cast<size_t>(__builtin_ctzll(lines));
    const auto mask = static_cast<__mmask8>(masks[line]);
    _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi64(mask, _mm512_loadu_si512(words + line * 8)));
    count += ones_of(mask);
  }
  return count;
}

inline __m512i kept_bits(__m512i tags) {
  return _mm512_permutex2var_epi64(_mm512_loadu_si512(kPredicted.of), tags,
                                   _mm512_loadu_si512(kPredicted.of + 8));
}

// Eight bytes of sixteen that may be read: GCC 12 fails on an 8-byte load folded into a masked conversion.
inline __m512i load_tags(const uint8_t* tags) {
  return _mm512_cvtepu8_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tags)));
}

struct Plain {
  __m512i tags = _mm512_setzero_si512();
  void set(__mmask8 fits, Tag tag) {
    tags = _mm512_mask_mov_epi64(tags, fits, all(static_cast<uint64_t>(tag)));
  }
};

// The cheapest tags that look at nothing but W and P.
inline __m512i plain_tags(__m512i w, __m512i p) {
  const __m512i x = _mm512_xor_si512(w, p);
  Plain t{all(static_cast<uint64_t>(Tag::literal))};
  t.set(_mm512_cmple_epu64_mask(w, all(low_mask(6))), Tag::small6);
  t.set(_mm512_cmple_epu64_mask(w, all(low_mask(4))), Tag::small4);
  t.set(_mm512_testn_epi64_mask(x, all(low_mask(4))), Tag::high4);
  t.set(_mm512_cmple_epu64_mask(x, all(low_mask(4))), Tag::predicted4);
  t.set(_mm512_cmple_epu64_mask(x, all(low_mask(3))), Tag::predicted3);
  t.set(_mm512_cmple_epu64_mask(x, all(low_mask(2))), Tag::predicted2);
  t.set(_mm512_cmple_epu64_mask(w, all(low_mask(1))), Tag::small1);
  t.set(_mm512_cmple_epu64_mask(x, all(low_mask(1))), Tag::predicted1);
  t.set(_mm512_testn_epi64_mask(w, w), Tag::zero);
  return t.tags;
}

inline void put_literals(Literals& l, __m512i tags, __m512i w, const uint8_t* index) {
  const __mmask8 m1 = in(kTakes1, tags), m2 = in(kTakes2, tags);
  const __mmask8 m4 = in(kTakes4, tags), m8 = in(kTakes8, tags);
  const __m512i high = _mm512_srli_epi64(w, 32);
  __m512i one = _mm512_mask_srli_epi64(w, in(kOneIsThird, tags), w, 16);
  one = _mm512_mask_mov_epi64(one, in(kReferences, tags), load_tags(index));
  const __m512i two = _mm512_mask_mov_epi64(w, in(bit(Tag::small6), tags), high);
  const __m512i four = _mm512_mask_mov_epi64(w, in(bit(Tag::high4), tags), high);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(l.one + l.ones),
                   _mm512_cvtepi64_epi8(_mm512_maskz_compress_epi64(m1, one)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(l.two + l.twos),
                   _mm512_cvtepi64_epi16(_mm512_maskz_compress_epi64(m2, two)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(l.four + l.fours),
                      _mm512_cvtepi64_epi32(_mm512_maskz_compress_epi64(m4, four)));
  _mm512_storeu_si512(l.eight + l.eights, _mm512_maskz_compress_epi64(m8, w));
  l.ones += ones_of(m1);
  l.twos += ones_of(m2);
  l.fours += ones_of(m4);
  l.eights += ones_of(m8);
}

// The lanes of eight that begin at i and lie before count.
inline __mmask8 lanes_before(size_t i, size_t count) {
  return static_cast<__mmask8>(count - i >= 8 ? 0xff : (1u << (count - i)) - 1);
}

}  // namespace

size_t encode_avx512(const WordEncoder& encoder, const uint64_t* page, const uint64_t* predicted,
                     const uint8_t* masks, std::byte* out) noexcept {
  const __m512i all_masks = _mm512_loadu_si512(masks);
  const uint64_t lines = _mm512_test_epi8_mask(all_masks, all_masks);
  std::memcpy(out, &lines, sizeof lines);
  std::byte* at = out + 8;
  for (size_t group = 0; group < 8; ++group) {
    uint64_t bytes;
    std::memcpy(&bytes, masks + group * 8, sizeof bytes);
    const auto bits = static_cast<unsigned>(lines >> (group * 8) & 0xff);
    bytes = _pext_u64(bytes, bytes_set(bits));
    std::memcpy(at, &bytes, sizeof bytes);
    at += ones_of(bits);
  }

  uint64_t padded[1 + kWordsPerPage + 8], expected[kWordsPerPage + 8];
  padded[0] = 0;
  uint64_t* const words = padded + 1;
  uint8_t tags[kWordsPerPage + 16], index[kWordsPerPage + 16];
  const size_t count = gather_words(page, masks, lines, words);
  gather_words(predicted, masks, lines, expected);
  for (size_t i = 0; i < count; i += 8) {
    const __m512i t = plain_tags(_mm512_loadu_si512(words + i), _mm512_loadu_si512(expected + i));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(tags + i), _mm512_cvtepi64_epi8(t));
  }
  encoder.find_references(words, count, tags, index);

  Literals literals;
  __m512i delta = _mm512_setzero_si512(), recent = _mm512_setzero_si512();
  for (size_t i = 0; i < count; i += 8) {
    const __mmask8 valid = lanes_before(i, count);
    const __m512i w = _mm512_loadu_si512(words + i);
    const __m512i d = _mm512_sub_epi64(w, _mm512_loadu_si512(expected + i));
    __m512i t = _mm512_maskz_mov_epi64(valid, load_tags(tags + i));
    const __mmask8 sets_delta = in(kSetsDelta, t);
    const __mmask8 is_delta = _mm512_cmpeq_epi64_mask(d, fill(sets_delta, d, delta, false)) &
                              _mm512_cmpgt_epu64_mask(t, all(static_cast<uint64_t>(Tag::delta)));
    delta = last(sets_delta, d, delta);
    const __mmask8 sets_recent = in(kSetsRecent, t) & static_cast<__mmask8>(~is_delta);
    const __m512i y = _mm512_xor_si512(w, fill(sets_recent, w, recent, false));
    recent = last(sets_recent, w, recent);
    const __mmask8 is4 = sets_recent & _mm512_cmple_epu64_mask(y, all(low_mask(4))) &
                         _mm512_cmpgt_epu64_mask(t, all(static_cast<uint64_t>(Tag::recent4)));
    const __mmask8 is3 = sets_recent & _mm512_cmple_epu64_mask(y, all(low_mask(3))) &
                         _mm512_cmpgt_epu64_mask(t, all(static_cast<uint64_t>(Tag::recent3)));
    Plain chosen{t};
    chosen.set(is4, Tag::recent4);
    chosen.set(is3, Tag::recent3);
    chosen.set(is_delta, Tag::delta);
    t = chosen.tags;
    const auto nibbles = static_cast<uint32_t>(
        _pext_u64(static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_cvtepi64_epi8(t))), kNibbles));
    std::memcpy(at + i / 2, &nibbles, sizeof nibbles);
    put_literals(literals, t, w, index + i);
  }
  return finish(literals, out, at + (count + 1) / 2);
}

namespace {

// Which words of which lines a payload is about.
struct Exceptions {
  uint64_t lines = 0;
  uint8_t masks[kLinesPerPage];
  size_t count = 0;
};

// Where the tags begin; null for a payload that is too short.
inline const std::byte* read_exceptions(Bytes payload, Exceptions& out) {
  if (payload.size() < 8) return nullptr;
  std::memcpy(&out.lines, payload.data(), sizeof out.lines);
  const std::byte* at = payload.data() + 8;
  const auto line_count = static_cast<size_t>(__builtin_popcountll(out.lines));
  if (payload.size() - 8 < line_count) return nullptr;
  for (size_t group = 0; group < 8; ++group) {
    const auto bits = static_cast<unsigned>(out.lines >> (group * 8) & 0xff);
    uint64_t bytes;
    std::memcpy(&bytes, at, sizeof bytes);
    bytes = _pdep_u64(bytes, bytes_set(bits));
    std::memcpy(out.masks + group * 8, &bytes, sizeof bytes);
    out.count += static_cast<size_t>(__builtin_popcountll(bytes));
    at += ones_of(bits);
  }
  return at;
}

// The literals of eight tags, each where it stands in its word.
inline __m512i take_literals(__m512i t, Streams& s) {
  const __mmask8 m1 = in(kTakes1, t), m2 = in(kTakes2, t), m4 = in(kTakes4, t), m8 = in(kTakes8, t);
  __m512i one = _mm512_maskz_expand_epi64(
      m1, _mm512_cvtepu8_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s.one))));
  __m512i two = _mm512_maskz_expand_epi64(
      m2, _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s.two))));
  __m512i four = _mm512_maskz_expand_epi64(
      m4, _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(s.four))));
  const __m512i eight = _mm512_maskz_expand_epi64(m8, _mm512_loadu_si512(s.eight));
  s.one += ones_of(m1);
  s.two += 2 * ones_of(m2);
  s.four += 4 * ones_of(m4);
  s.eight += 8 * ones_of(m8);
  one = _mm512_mask_slli_epi64(one, in(kOneIsThird, t), one, 16);
  two = _mm512_mask_slli_epi64(two, in(bit(Tag::small6), t), two, 32);
  four = _mm512_mask_slli_epi64(four, in(bit(Tag::high4), t), four, 32);
  return _mm512_or_si512(_mm512_or_si512(one, two), _mm512_or_si512(four, eight));
}

// References wait until all else is known: their literals (low 16 bits, then the byte, then the tag) and
// places.
struct References {
  uint64_t literals[kWordsPerPage + 8], places[kWordsPerPage + 8];
  size_t count = 0;

  void add(__mmask8 which, __m512i t, __m512i literal, __m512i place) {
    const __m512i tagged = _mm512_or_si512(literal, _mm512_slli_epi64(t, 32));
    _mm512_storeu_si512(literals + count, _mm512_maskz_compress_epi64(which, tagged));
    _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi64(which, place));
    count += ones_of(which);
  }

  void resolve(const Dictionary& dictionary, uint64_t* done) const {
    static constexpr uint64_t kBeforeTheFirst = 0;
    for (size_t n = 0; n < count; ++n) {
      const uint64_t literal = literals[n], tag = literal >> 32, place = places[n];
      const size_t index = literal >> 16 & 0xff;
      const uint64_t* source = index < place ? done + (place - 1 - index) : &kBeforeTheFirst;
      source = tag == static_cast<uint64_t>(Tag::dictionary) ? dictionary.words + index : source;
      const uint64_t kept = tag == static_cast<uint64_t>(Tag::cached2) ? ~low_mask(2) : ~0ull;
      done[place] = (*source & kept) | (literal & low_mask(2));
    }
  }
};

// The opposite of gather_words.
inline void scatter_words(const Exceptions& exceptions, const uint64_t* from, uint64_t* words) {
  for (uint64_t rest = exceptions.lines; rest != 0; rest = _blsr_u64(rest)) {
    const auto line = static_cast<size_t>(__builtin_ctzll(rest));
    const auto mask = static_cast<__mmask8>(exceptions.masks[line]);
    const __m512i old = _mm512_loadu_si512(words + line * 8);
    _mm512_storeu_si512(words + line * 8, _mm512_mask_expand_epi64(old, mask, _mm512_loadu_si512(from)));
    from += ones_of(mask);
  }
}

}  // namespace

bool decode_avx512(Bytes payload, const Dictionary& dictionary, uint64_t* words) noexcept {
  Exceptions exceptions;
  const std::byte* const at = read_exceptions(payload, exceptions);
  if (at == nullptr) return false;
  const size_t count = exceptions.count;
  Streams s;
  if (!find_streams(at, payload.data() + payload.size(), count, s)) return false;

  uint64_t done[kWordsPerPage + 8];
  gather_words(words, exceptions.masks, exceptions.lines, done);

  References references;
  const __m512i lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  __m512i delta = _mm512_setzero_si512(), recent = _mm512_setzero_si512();
  for (size_t i = 0; i < count; i += 8) {
    uint32_t nibbles;
    std::memcpy(&nibbles, s.tags + i / 2, sizeof nibbles);
    if (count - i < 8) nibbles &= (1u << (4 * (count - i))) - 1;  // the rest: zeros, which take nothing
    const __m512i t =
        _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(static_cast<long long>(_pdep_u64(nibbles, kNibbles))));
    const __m512i literal = take_literals(t, s);
    const __m512i p = _mm512_loadu_si512(done + i);
    __m512i w = _mm512_ternarylogic_epi64(p, kept_bits(t), literal, 0xEA);  // (p & kept) | literal

    const __mmask8 sets_recent = in(kSetsRecent, t);
    const __mmask8 is3 = in(bit(Tag::recent3), t), is4 = in(bit(Tag::recent4), t);
    // What the lanes of `recent` tags keep of one another is the upper half and, of recent3, byte 3.
    const __m512i upper = fill(static_cast<__mmask8>(sets_recent & ~(is3 | is4)), w, recent, true);
    const __m512i third = fill(static_cast<__mmask8>(sets_recent & ~is3), w, recent, true);
    w = _mm512_mask_ternarylogic_epi64(w, static_cast<__mmask8>(is3 | is4), upper, all(~low_mask(4)), 0xF8);
    w = _mm512_mask_ternarylogic_epi64(w, is3, third, all(low_mask(4) & ~low_mask(3)), 0xF8);
    recent = last(sets_recent, w, recent);

    const __mmask8 sets_delta = in(kSetsDelta, t);
    const __m512i d = _mm512_sub_epi64(w, p);
    w = _mm512_mask_add_epi64(w, in(bit(Tag::delta), t), p, fill(sets_delta, d, delta, true));
    delta = last(sets_delta, d, delta);
    _mm512_storeu_si512(done + i, w);

    references.add(in(kReferences, t), t, literal, _mm512_add_epi64(all(i), lanes));
  }
  references.resolve(dictionary, done);
  scatter_words(exceptions, done, words);
  return true;
}

}  // namespace medes::coder
#endif
