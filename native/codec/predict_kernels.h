// Internal to codec/: the kernels of prediction and comparison, one translation unit a level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace medes {
struct Predictor;

namespace kernels {

inline constexpr uint64_t kSlideBits = 0xfff;  // slides are page multiples: the bits they leave alone

// One page: P[i] = predict(V[i]) in the lines whose bit is set; other lines of p stay as they are.
void predict_scalar(const Predictor& predictor, const uint64_t* v, uint64_t* p, uint64_t lines);
void predict_avx2(const Predictor& predictor, const uint64_t* v, uint64_t* p, uint64_t lines);
void predict_avx512(const Predictor& predictor, const uint64_t* v, uint64_t* p, uint64_t lines);

// masks[i]: bit j set where a[8i + j] != b[8i + j]; returns the number of differing words.
size_t diff_scalar(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words);
size_t diff_avx2(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words);
size_t diff_avx512(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words);

// What a window is worth, without a prediction: counts[i] is the number of the line's words that differ from
// the window's and do not look like the same pointer moved (window word in the predictor's hull, low 12 bits
// alike). Returns their sum. For one page.
size_t weigh_scalar(const Predictor& predictor, const uint64_t* page, const uint64_t* window,
                    uint8_t* counts);
size_t weigh_avx2(const Predictor& predictor, const uint64_t* page, const uint64_t* window, uint8_t* counts);
size_t weigh_avx512(const Predictor& predictor, const uint64_t* page, const uint64_t* window,
                    uint8_t* counts);

}  // namespace kernels
}  // namespace medes
