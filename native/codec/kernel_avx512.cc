#include "codec/kernel.h"

#if defined(__AVX512F__)
// GCC 12 warns of its own header's undefined-value idiom (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace medes::fp {
namespace {

inline __m512i all(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }
inline __m512i all32(uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }

inline __m512i normalise(__m512i w, const Ranges& r) {
  __mmask8 outside = 0xff;
  for (uint32_t i = 0; i < r.count; ++i) {
    outside = _mm512_mask_cmpge_epu64_mask(outside, _mm512_sub_epi64(w, all(r.begin[i])), all(r.length[i]));
  }
  // (w & 0xfff) | mark in one ternary: 0xEA = (a & b) | c
  const __m512i pointer = _mm512_ternarylogic_epi64(w, all(0xfff), all(kPointerMark), 0xEA);
  return _mm512_mask_mov_epi64(pointer, outside, w);
}

// Products of the eight words of one vector; even lanes use K0/K1, odd lanes K2/K3.
inline __m512i products(const uint64_t* words, const Ranges& r) {
  const __m512i keys = _mm512_broadcast_i32x4(_mm_setr_epi32(static_cast<int>(kK0), static_cast<int>(kK1),
                                                             static_cast<int>(kK2), static_cast<int>(kK3)));
  const __m512i sums = _mm512_add_epi32(normalise(_mm512_loadu_si512(words), r), keys);
  return _mm512_mul_epu32(sums, _mm512_srli_epi64(sums, 32));
}

// The folded sums of eight word pairs, in the low halves of the lanes, in the order 0, 4, 1, 5, 2, 6, 3, 7.
inline __m512i folded(const uint64_t* words, const Ranges& r) {
  const __m512i p0 = products(words, r), p1 = products(words + 8, r);
  const __m512i sum = _mm512_add_epi64(_mm512_unpacklo_epi64(p0, p1), _mm512_unpackhi_epi64(p0, p1));
  return _mm512_xor_si512(sum, _mm512_srli_epi64(sum, 32));
}

// Sixteen blocks.
inline __m512i blocks(const uint64_t* words, const Ranges& r) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
  return _mm512_permutex2var_epi32(folded(words, r), order, folded(words + 16, r));
}

// The order keys of the sixteen windows that begin in `here`.
inline __m512i order_keys(__m512i here, __m512i next, __m512i positions) {
  const __m512i s01 = _mm512_xor_si512(here, _mm512_rol_epi32(_mm512_alignr_epi32(next, here, 1), 7));
  const __m512i s = _mm512_ternarylogic_epi32(s01, _mm512_rol_epi32(_mm512_alignr_epi32(next, here, 2), 15),
                                              _mm512_rol_epi32(_mm512_alignr_epi32(next, here, 3), 23), 0x96);
  const __m512i mixed = _mm512_mullo_epi32(s, all32(kK4));
  const __m512i key = _mm512_ternarylogic_epi32(mixed, all32(~0xffu), positions, 0xEA);
  return _mm512_mask_mov_epi32(key, _mm512_cmpeq_epi32_mask(s, all32(kZeroWindow)), all32(kNoKey));
}

constexpr size_t kSorted = 64;  // keys that are sorted by counting

// Up to kSorted keys below the limit; more are counted only.
inline size_t below(const uint32_t* keys, uint32_t limit, uint32_t* out) {
  size_t count = 0;
  for (size_t i = 0; i < kBlocksPerPage; i += 16) {
    const __m512i v = _mm512_loadu_si512(keys + i);
    const __mmask16 keep = _mm512_cmplt_epu32_mask(v, all32(limit));
    if (count <= kSorted) _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(keep, v));
    count += static_cast<size_t>(__builtin_popcount(keep));
  }
  return count;
}

// select_keys() without a branch on the data: a key's place is the number of smaller ones.
inline size_t select_by_rank(const uint32_t* keys, size_t count, size_t k, uint32_t* best) {
  uint32_t sorted[kSorted + 16];
  alignas(64) uint32_t padded[kSorted];
  const size_t vectors = (count + 15) / 16;
  for (size_t v = 0; v < vectors; ++v) {
    const size_t rest = count - v * 16;
    const auto there = static_cast<__mmask16>(rest >= 16 ? 0xffff : (1u << rest) - 1);
    _mm512_store_si512(padded + v * 16, _mm512_mask_loadu_epi32(all32(kNoKey), there, keys + v * 16));
  }
  for (size_t i = 0; i < count; ++i) {
    size_t smaller = 0;
    for (size_t v = 0; v < vectors; ++v) {
      const __mmask16 less = _mm512_cmplt_epu32_mask(_mm512_load_si512(padded + v * 16), all32(padded[i]));
      smaller += static_cast<size_t>(__builtin_popcount(less));
    }
    sorted[smaller] = padded[i];
  }
  size_t size = 0;
  uint32_t before = kNoKey;  // no key's upper bits: a sorted list's first differs
  for (size_t i = 0; i < count && size < k; ++i) {
    best[size] = sorted[i];
    size += i == 0 || (sorted[i] ^ before) >> 8 != 0;
    before = sorted[i];
  }
  return size;
}

}  // namespace

size_t sample_avx512(const uint64_t* page, const Ranges& ranges, size_t k, Samples& out) {
  uint32_t keys[kBlocksPerPage];
  __m512i positions = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i here = blocks(page, ranges);
  for (size_t b = 0; b < kBlocksPerPage - 16; b += 16) {
    const __m512i next = blocks(page + 2 * b + 32, ranges);
    _mm512_storeu_si512(keys + b, order_keys(here, next, positions));
    positions = _mm512_add_epi32(positions, all32(16));
    here = next;
  }
  const __m512i last = order_keys(here, _mm512_setzero_si512(), positions);
  _mm512_storeu_si512(keys + kBlocksPerPage - 16, _mm512_mask_mov_epi32(last, 0xe000, all32(kNoKey)));

  // Most pages have their k smallest keys below a limit that lets twice as many pass. Keys of equal windows
  // may hide each other, so a page counts as settled only by what is left of them.
  uint32_t candidates[kBlocksPerPage + 16];
  const auto limit = static_cast<uint32_t>((uint64_t{2 * k + 2} << 32) / kWindowsPerPage);
  size_t count = below(keys, limit, candidates);
  size_t size = count <= kSorted ? select_by_rank(candidates, count, k, out.best) : 0;
  if (size < k) {
    count = below(keys, kNoKey, candidates);
    size = count <= kSorted ? select_by_rank(candidates, count, k, out.best)
                            : select_keys(keys, kWindowsPerPage, k, out.best);
  }
  for (size_t i = 0; i < size; ++i) {
    const __m512i window = _mm512_loadu_si512(page + size_t{out.best[i] & 0xff} * 2);
    _mm512_store_si512(out.windows[i], normalise(window, ranges));
  }
  return size;
}

}  // namespace medes::fp
#endif
