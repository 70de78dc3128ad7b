// Internal to patch/: the kernels behind predict_kernel() and diff_kernel(), one translation unit a level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace medes {
struct Predictor;

namespace kernels {

void predict_scalar(const Predictor& predictor, const uint64_t* v, uint64_t* p, size_t words);
void predict_avx2(const Predictor& predictor, const uint64_t* v, uint64_t* p, size_t words);
void predict_avx512(const Predictor& predictor, const uint64_t* v, uint64_t* p, size_t words);

// masks[i]: bit j set where a[8i + j] != b[8i + j]; returns the number of differing words.
size_t diff_scalar(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words);
size_t diff_avx2(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words);
size_t diff_avx512(const uint64_t* a, const uint64_t* b, uint8_t* masks, size_t words);

}  // namespace kernels
}  // namespace medes
