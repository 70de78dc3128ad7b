// Slides: by how much pointers into a granule (256 KiB) of the base's address space differ in the target.
// ASLR moves mappings by page multiples; the predictor adds the learnt slide to every word that lies in a
// learnt granule.
//
//   P(V) = V + slide[granule(V)]  where the granule is known, else V
//
// Learnt granules cluster in a few segments of the address space (program and heap, mappings, stack). Encoder
// and decoder build from the entries, alike, one dense array of slides over all segments, so that a
// prediction is a subtraction, a comparison and a load. (A gather instruction is slower than eight loads on
// the CPUs tried.)
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/base_view.h"
#include "codec/simd.h"
#include "image/image.h"

namespace medes {

inline constexpr int kGranuleBits = 18;
inline constexpr size_t kMaxSlides = 4096;            // distinct slides of one base, the zero slide included
inline constexpr size_t kMaxSlideEntries = 1u << 14;  // granules of one base

inline constexpr size_t kMaxSegments = 8;
inline constexpr size_t kSegmentGap = 256;     // granules (64 MiB) without an entry that begin a new segment
inline constexpr size_t kMaxDense = 1u << 16;  // granules of all segments: 16 GiB of address space

// What the prediction kernels need, flat. Words in no segment are predicted unchanged: dense[0] is 0, and
// segment s begins at dense[offset[s]]. All segments lie in the hull [hull_begin, hull_begin + hull_last],
// which only saves time.
struct Predictor {
  uint64_t hull_begin = 0, hull_last = 0;                                                   // bytes
  uint64_t begin[kMaxSegments] = {}, length[kMaxSegments] = {}, offset[kMaxSegments] = {};  // granules
  uint32_t segments = 0;
  const int64_t* dense = nullptr;
};

// An entry is granule << 16 | index into slides; slides[0] is 0.
class SlideTable {
 public:
  SlideTable();
  // Throws corrupt when an index or a count is out of bounds, entries are not ascending, or their segments
  // are longer than kMaxDense.
  SlideTable(std::vector<int64_t> slides, std::vector<uint64_t> entries);

  const std::vector<int64_t>& slides() const { return slides_; }
  const std::vector<uint64_t>& entries() const { return entries_; }
  Predictor predictor() const;  // valid while the table lives and is not moved

 private:
  void build();
  std::vector<int64_t> slides_;
  std::vector<uint64_t> entries_;
  std::vector<int64_t> dense_;
  Predictor predictor_;
};

// Learns the table from (page, window) pairs of one base: per granule the majority of W - V over word pairs
// of which both lie in pointer ranges and agree in the low 12 bits.
class SlideLearner {
 public:
  SlideLearner(const AddressSpace& target, const AddressSpace& base);
  void add(const uint64_t* page, const uint64_t* window);
  void merge(const SlideLearner& other);
  SlideTable finish() const;

 private:
  struct Cell {
    uint64_t granule = ~0ull;
    int64_t slide = 0;
    int64_t lead = 0;  // majority vote (Boyer and Moore): how far the slide leads
    uint64_t pairs = 0;
  };
  static SlideTable make_table(const std::vector<Cell>& cells);
  void count(uint64_t granule, int64_t slide, int64_t weight, uint64_t pairs);
  void grow();

  std::vector<AddressRange> target_, base_;
  std::vector<Cell> cells_;  // open addressing, a power of two
  size_t used_ = 0;
};

// One page: P[i] = predict(V[i]) in the lines whose bit is set; other lines of p stay as they are.
using PredictFn = void (*)(const Predictor& predictor, const uint64_t* v, uint64_t* p, uint64_t lines);
inline constexpr uint64_t kAllLines = ~0ull;
PredictFn predict_kernel(SimdLevel level);

}  // namespace medes
