// The patch of one page: which words of the page are not what the predictor says, and what they are instead.
// Payload (docs/patch-format.md):  [window map, with two windows or more] [u64: lines with exceptions] [u8
// per such line: words] [a nibble an exception: tags] [1-byte literals] [2-byte] [4-byte] [8-byte]. Literals
// are sorted by size, so that eight exceptions decode at once: each stream is read by one load and spread to
// the lanes that want of it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/simd.h"
#include "common/bytes.h"
#include "common/limits.h"
#include "common/wiped.h"

namespace medes {

inline constexpr size_t kWordsPerPage = kPageBytes / 8;
inline constexpr size_t kLinesPerPage = kPageBytes / 64;
// A decoder may load (never use) this many bytes past the payload; buffers are padded by as much.
inline constexpr size_t kPayloadPadding = 64;
// Scratch an encoder's output needs: the most a payload can grow to before it is given up, and the last
// vector's overhang.
inline constexpr size_t kPayloadCapacity =
    8 + kLinesPerPage + kWordsPerPage / 2 + kPageBytes + kPayloadPadding;

inline constexpr size_t kLineMapCapacity = 32;

// Words that many pages of one image need: type pointers, -1, small shared objects. One list an image.
inline constexpr size_t kDictionaryWords = 256;
struct Dictionary {
  Dictionary() = default;
  Dictionary(const Dictionary&) = default;
  Dictionary& operator=(const Dictionary&) = default;
  ~Dictionary() { wipe(words, sizeof words); }  // a sandbox's own

  uint64_t words[kDictionaryWords] = {};
};

// The sixteen tags, in order of cost. P is the prediction, W the result; `low n` means that the n lowest
// bytes are replaced by a literal. Three look back: `delta` to the last exception of known W - P, `recent` to
// the last word that took two literal bytes or more, `cached` by a distance in exceptions. What they look at
// is chosen so that no chain of references arises inside a vector (word_table.h).
enum class Tag : uint8_t {
  zero,        // W = 0
  delta,       // W = P + delta
  predicted1,  // low 1 of P
  small1,      // W is 1 byte
  dictionary,  // W = a word of the dictionary, by index (a byte)
  cached,      // W = the W of an exception 1 … 256 before (a byte); 0 before the first
  predicted2,  // low 2 of P
  cached2,     // low 2 of an exception 1 … 256 before (a byte)
  predicted3,  // low 3 of P
  recent3,     // low 3 of recent
  predicted4,  // low 4 of P
  recent4,     // low 4 of recent
  high4,       // high 4 of P
  small4,      // W is 4 bytes
  small6,      // W is 6 bytes
  literal      // W is 8 bytes
};

// Window per line: 0 … count-1.
struct LineMap {
  uint8_t window[kLinesPerPage];
};
uint64_t lines_of(const LineMap& map, size_t window) noexcept;  // a bit a line

// Encodes words. Holds what makes looking up dictionary words fast; one a thread. Every level writes the same
// bytes.
class WordEncoder {
 public:
  explicit WordEncoder(const Dictionary& dictionary, SimdLevel level = best_simd());

  // Encodes `page` given its prediction and the exception masks per line (bit j: word j differs). Returns the
  // payload's length, or 0 when it would reach kPageBytes. `out` has kPayloadCapacity bytes.
  size_t encode(const uint64_t* page, const uint64_t* predicted, const uint8_t* masks,
                std::byte* out) const noexcept;

  // Turns tags of two literal bytes and more into dictionary and cached where those are cheaper, and writes
  // their index or distance. `words` has a zero in front.
  void find_references(const uint64_t* words, size_t count, uint8_t* tags, uint8_t* index) const noexcept;

 private:
  static constexpr size_t kSlots = 1024;
  const Dictionary& dictionary_;
  SimdLevel level_;
  uint8_t dictionary_at_[kSlots];  // slot of a word's hash → index; a hint, checked against the word
};

// The window map alone, for two windows or more; returns its length, at most kLineMapCapacity.
size_t encode_line_map(const LineMap& map, std::byte* out) noexcept;

// Reads the map at the payload's start; returns its length, or SIZE_MAX when the payload is malformed.
size_t decode_line_map(Bytes payload, size_t window_count, LineMap& map) noexcept;

// Turns the predictions in `words` into the page. False when the payload is malformed. Reads up to
// kPayloadPadding bytes past the payload.
using DecodeWordsFn = bool (*)(Bytes payload, const Dictionary& dictionary, uint64_t* words) noexcept;
DecodeWordsFn decode_words_kernel(SimdLevel level);

}  // namespace medes
