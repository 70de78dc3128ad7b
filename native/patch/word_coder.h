// The patch of one page: which words of the page are not what the predictor says, and what they are instead.
// Payload (docs/patch-format.md):  [window map, with two windows or more] [exception bitmap] [literals →] [←
// nibbles] The nibbles (one tag an exception, and one cache index after a tag that asks for it) run backwards
// from the payload's end, so that neither stream needs a length.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/bytes.h"
#include "common/limits.h"

namespace medes {

inline constexpr size_t kWordsPerPage = kPageBytes / 8;
inline constexpr size_t kLinesPerPage = kPageBytes / 64;
// A decoder may load (never use) this many bytes past the payload; buffers are padded by as much.
inline constexpr size_t kPayloadPadding = 8;
// Scratch an encoder's output needs: the most a payload of kPageBytes can grow to before it is given up.
inline constexpr size_t kPayloadCapacity = kPageBytes + 1024 + 64;

inline constexpr size_t kLineMapCapacity = 32;

// Words that many pages of one image need: type pointers, -1, small shared objects. One list an image.
inline constexpr size_t kDictionaryWords = 256;
struct Dictionary {
  uint64_t words[kDictionaryWords] = {};
};

// The sixteen tags. P is the prediction, W the result; `low n` means that the n lowest bytes are replaced by
// a literal. A new word (any that took two literal bytes or more) enters a ring of sixteen, the cache, which
// begins as the dictionary's first sixteen words.
enum class Tag : uint8_t {
  zero,        // W = 0
  delta,       // W = P + the last exception's W - P
  cached,      // W = a word of the cache, by index (a nibble)
  predicted1,  // low 1 of P
  small1,      // W is 1 byte
  dictionary,  // W = a word of the dictionary, by index (a byte)
  predicted2,  // low 2 of P
  cached2,     // low 2 of a word of the cache, by index (a nibble)
  predicted3,  // low 3 of P
  recent3,     // low 3 of the newest word of the cache
  predicted4,  // low 4 of P
  recent4,     // low 4 of the newest word of the cache
  high4,       // high 4 of P
  small4,      // W is 4 bytes
  small6,      // W is 6 bytes
  literal      // W is 8 bytes
};

// Window per line: 0 … count-1.
struct LineMap {
  uint8_t window[kLinesPerPage];
};

// Encodes words. Holds what makes looking up dictionary words fast; one a thread.
class WordEncoder {
 public:
  explicit WordEncoder(const Dictionary& dictionary);

  // Encodes `page` given its prediction and the exception masks per line (bit j: word j differs). Returns the
  // payload's length, or 0 when it would reach kPageBytes. `out` has kPayloadCapacity bytes.
  size_t encode(const uint64_t* page, const uint64_t* predicted, const uint8_t* masks,
                std::byte* out) noexcept;

 private:
  static constexpr size_t kSlots = 1024;
  const Dictionary& dictionary_;
  uint8_t dictionary_at_[kSlots];  // slot of a word's hash → index; a hint, checked against the word
};

// The window map alone, for two windows or more; returns its length, at most kLineMapCapacity.
size_t encode_line_map(const LineMap& map, std::byte* out) noexcept;

// Reads the map at the payload's start; returns its length, or SIZE_MAX when the payload is malformed.
size_t decode_line_map(Bytes payload, size_t window_count, LineMap& map) noexcept;
// Turns the predictions in `words` into the page. False when the payload is malformed. Reads up to
// kPayloadPadding bytes past the payload.
bool decode_words(Bytes payload, const Dictionary& dictionary, uint64_t* words) noexcept;

}  // namespace medes
