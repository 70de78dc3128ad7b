#include "codec/slides.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "codec/fingerprint.h"
#include "codec/predict_kernels.h"
#include "common/error.h"

namespace medes {
namespace {

constexpr uint64_t kLowBits = 0xfff;  // slides are page multiples
constexpr uint64_t kGranules = 1ull << (64 - kGranuleBits);
constexpr uint64_t kSpreadGranules = 16;  // 4 MiB
constexpr int64_t kLeadMin = 3;           // pairs by which a slide must lead to be kept
constexpr size_t kWordsPerPage = kPageBytes / 8;

bool in_ranges(const std::vector<AddressRange>& ranges, uint64_t w) {
  return std::any_of(ranges.begin(), ranges.end(), [w](const AddressRange& r) { return r.contains(w); });
}

// Where the ascending entries are cut into segments: at the widest gaps, of those above kSegmentGap.
struct Segments {
  size_t count = 0;
  size_t first[kMaxSegments + 1];  // index of the first entry; one past the last entry at the end
  uint64_t granules = 1;           // of the dense array, its leading zero included
};

Segments cut_segments(const std::vector<uint64_t>& entries) {
  std::vector<std::pair<uint64_t, size_t>> gaps;
  for (size_t i = 1; i < entries.size(); ++i) {
    const uint64_t gap = (entries[i] >> 16) - (entries[i - 1] >> 16);
    if (gap > kSegmentGap) gaps.emplace_back(gap, i);
  }
  std::sort(gaps.begin(), gaps.end(), [](const auto& a, const auto& b) { return a > b; });
  if (gaps.size() > kMaxSegments - 1) gaps.resize(kMaxSegments - 1);
  std::sort(gaps.begin(), gaps.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  Segments out;
  out.first[0] = 0;
  for (const auto& gap : gaps) out.first[++out.count] = gap.second;
  out.first[++out.count] = entries.size();
  for (size_t i = 0; i < out.count; ++i) {
    out.granules += (entries[out.first[i + 1] - 1] >> 16) - (entries[out.first[i]] >> 16) + 1;
  }
  return out;
}

size_t cell_of(uint64_t granule, size_t cells) {
  return (granule * 0x9e3779b97f4a7c15ull >> 32) & (cells - 1);
}

}  // namespace

SlideTable::SlideTable() : SlideTable({0}, {}) {}

SlideTable::SlideTable(std::vector<int64_t> slides, std::vector<uint64_t> entries)
    : slides_(std::move(slides)), entries_(std::move(entries)) {
  if (slides_.empty() || slides_.size() > kMaxSlides || slides_[0] != 0 ||
      entries_.size() > kMaxSlideEntries) {
    throw Error(Code::corrupt, "slide table out of bounds");
  }
  uint64_t next = 0;  // smallest granule allowed
  for (uint64_t entry : entries_) {
    const uint64_t granule = entry >> 16, index = entry & 0xffff;
    if (index >= slides_.size() || granule < next || granule >= kGranules) {
      throw Error(Code::corrupt, "slide table entry out of bounds");
    }
    next = granule + 1;
  }
  build();
}

void SlideTable::build() {
  dense_.assign(1, 0);
  if (entries_.empty()) return;
  const Segments segments = cut_segments(entries_);
  if (segments.granules >= kMaxDense) throw Error(Code::corrupt, "slide table spans too much address space");
  Predictor& p = predictor_;
  for (size_t i = 0; i < segments.count; ++i) {
    const uint64_t* const first = entries_.data() + segments.first[i];
    const uint64_t* const last = entries_.data() + segments.first[i + 1];
    const uint64_t begin = *first >> 16, length = (last[-1] >> 16) - begin + 1;
    p.begin[i] = begin;
    p.length[i] = length;
    p.offset[i] = dense_.size();
    dense_.resize(dense_.size() + length);
    int64_t* const row = dense_.data() + p.offset[i];
    for (const uint64_t* e = first; e != last; ++e) {
      const uint64_t at = (*e >> 16) - begin;
      row[at] = slides_[*e & 0xffff];
      // An unknown granule most likely lies in the mapping of the known one before it.
      const uint64_t until = e + 1 != last ? (e[1] >> 16) - begin : at + 1;
      for (uint64_t g = at + 1; g < std::min(until, at + 1 + kSpreadGranules); ++g) row[g] = row[at];
    }
  }
  p.segments = static_cast<uint32_t>(segments.count);
  p.hull_begin = p.begin[0] << kGranuleBits;
  const size_t last = segments.count - 1;
  p.hull_last = ((p.begin[last] + p.length[last]) << kGranuleBits) - 1 - p.hull_begin;
}

Predictor SlideTable::predictor() const {
  Predictor p = predictor_;
  p.dense = dense_.data();
  return p;
}

SlideLearner::SlideLearner(const AddressSpace& target, const AddressSpace& base)
    : target_(pointer_ranges(target)), base_(pointer_ranges(base)), cells_(1024) {}

// Few pairs pass the first test, and not predictably: those that do are listed without a branch.
void SlideLearner::add(const uint64_t* page, const uint64_t* window) {
  uint16_t alike[kWordsPerPage + 1];
  size_t n = 0;
  for (size_t i = 0; i < kWordsPerPage; ++i) {
    alike[n] = static_cast<uint16_t>(i);
    n += size_t{((page[i] ^ window[i]) & kLowBits) == 0} & size_t{window[i] > kLowBits};
  }
  for (size_t j = 0; j < n; ++j) {
    const uint64_t w = page[alike[j]], v = window[alike[j]];
    if (!in_ranges(base_, v) || !in_ranges(target_, w)) continue;
    count(v >> kGranuleBits, static_cast<int64_t>(w - v), 1, 1);
  }
}

void SlideLearner::count(uint64_t granule, int64_t slide, int64_t weight, uint64_t pairs) {
  size_t at = cell_of(granule, cells_.size());
  while (cells_[at].granule != granule && cells_[at].granule != ~0ull) at = (at + 1) & (cells_.size() - 1);
  Cell& cell = cells_[at];
  if (cell.granule == ~0ull) {
    cell = {granule, slide, weight, pairs};
    if (++used_ * 2 > cells_.size()) grow();
    return;
  }
  cell.pairs += pairs;
  if (cell.slide == slide) {
    cell.lead += weight;
  } else if ((cell.lead -= weight) < 0) {
    cell.slide = slide;
    cell.lead = -cell.lead;
  }
}

void SlideLearner::grow() {
  std::vector<Cell> old(cells_.size() * 2);
  old.swap(cells_);
  used_ = 0;
  for (const Cell& c : old) {
    if (c.granule != ~0ull) count(c.granule, c.slide, c.lead, c.pairs);
  }
}

void SlideLearner::merge(const SlideLearner& other) {
  for (const Cell& c : other.cells_) {
    if (c.granule != ~0ull) count(c.granule, c.slide, c.lead, c.pairs);
  }
}

// From cells in order of certainty; empty when their segments span too much address space.
SlideTable SlideLearner::make_table(const std::vector<Cell>& cells) {
  std::vector<int64_t> slides{0};
  std::unordered_map<int64_t, size_t> index{{0, 0}};
  std::vector<uint64_t> entries;
  for (const Cell& c : cells) {
    const auto [it, fresh] = index.try_emplace(c.slide, slides.size());
    if (fresh) {
      if (slides.size() == kMaxSlides) {
        index.erase(it);
        continue;
      }
      slides.push_back(c.slide);
    }
    entries.push_back(c.granule << 16 | it->second);
  }
  std::sort(entries.begin(), entries.end());
  if (!entries.empty() && cut_segments(entries).granules >= kMaxDense) return SlideTable();
  return SlideTable(std::move(slides), std::move(entries));
}

SlideTable SlideLearner::finish() const {
  std::vector<Cell> kept;
  for (const Cell& c : cells_) {
    if (c.granule != ~0ull && c.lead >= kLeadMin) kept.push_back(c);
  }
  std::sort(kept.begin(), kept.end(), [](const Cell& a, const Cell& b) {
    return a.lead != b.lead ? a.lead > b.lead : a.granule < b.granule;
  });
  if (kept.size() > kMaxSlideEntries) kept.resize(kMaxSlideEntries);
  for (;;) {
    SlideTable table = make_table(kept);
    if (!table.entries().empty() || kept.empty()) return table;
    kept.resize(kept.size() / 2);  // the segments would span too much: keep the surer half
  }
}

PredictFn predict_kernel(SimdLevel level) {
#if defined(__x86_64__)
  if (level == SimdLevel::avx512) return kernels::predict_avx512;
  if (level == SimdLevel::avx2) return kernels::predict_avx2;
#endif
  (void)level;
  return kernels::predict_scalar;
}

}  // namespace medes
