#include "dedup/learn.h"

#include <algorithm>
#include <bit>
#include <memory>

#include "codec/page_encoder.h"
#include "common/thread_pool.h"
#include "common/wiped.h"

namespace medes {
namespace {

constexpr size_t kDictionaryStride = 2 * kLearnStride;
constexpr size_t kLearnTask = 2048;  // pages; fixed, so that the table does not depend on the thread count

// Counts words in a fixed space: a cell keeps the word that leads among those that fall into it.
class WordCounter {
 public:
  void add(uint64_t word) {
    Cell& cell = cells_[word * 0x9e3779b97f4a7c15ull >> (64 - kCellBits)];
    if (cell.word == word) {
      ++cell.lead;
    } else if (cell.lead == 0) {
      cell = {word, 1};
    } else {
      --cell.lead;
    }
  }
  // The most frequent words first.
  Dictionary dictionary() {
    std::sort(cells_.begin(), cells_.end(), [](const Cell& a, const Cell& b) {
      return a.lead != b.lead ? a.lead > b.lead : a.word < b.word;
    });
    Dictionary out;
    for (size_t i = 0; i < kDictionaryWords && cells_[i].lead >= kDictionaryUses; ++i)
      out.words[i] = cells_[i].word;
    return out;
  }

 private:
  static constexpr int kCellBits = 13;
  static constexpr uint32_t kDictionaryUses = 4;  // seen in a sixteenth of the pages
  struct Cell {
    uint64_t word = 0;
    uint32_t lead = 0;
  };
  std::vector<Cell, WipingAllocator<Cell>> cells_ = decltype(cells_)(size_t{1} << kCellBits);
};

// Counts the words of a page that differ from what its best window predicts.
void count_exceptions(const uint64_t* words, const uint64_t* predicted, DiffFn diff, WordCounter& counter) {
  uint8_t masks[kLinesPerPage];
  diff(words, predicted, masks, kWordsPerPage);
  for (size_t line = 0; line < kLinesPerPage; ++line) {
    for (unsigned mask = masks[line]; mask != 0; mask &= mask - 1) {
      const uint64_t w = words[line * 8 + static_cast<size_t>(std::countr_zero(mask))];
      if (w > 0xffff) counter.add(w);
    }
  }
}

}  // namespace

std::vector<SlideTable> learn_slides(const MemoryImage& image, const WindowPlan& plan,
                                     std::span<const BaseView> views, const Reuse* reuse) {
  const uint64_t pages = image.page_count();
  const size_t tasks = static_cast<size_t>((pages + kLearnTask - 1) / kLearnTask);
  std::vector<std::vector<std::unique_ptr<SlideLearner>>> learners(tasks);
  ThreadPool::shared().parallel_for(tasks, 1, [&](size_t begin, size_t end) {
    for (size_t task = begin; task < end; ++task) {
      auto& own = learners[task];
      own.resize(views.size());
      const uint64_t last = std::min<uint64_t>(pages, (task + 1) * kLearnTask);
      std::vector<uint64_t> sample;
      for (uint64_t page = task * kLearnTask; page < last; page += kLearnStride)
        if (!is_taken_over(reuse, page) && window_fits(plan.windows(page)[0], views)) sample.push_back(page);
      static thread_local ThreadScratch<PageBuffer> thread_buffer(kLearnTask / kLearnStride);
      const PageBuffer& buffer = thread_buffer.use();
      image.gather(sample, buffer.data());
      for (size_t i = 0; i < sample.size(); ++i) {
        const uint64_t window = plan.windows(sample[i])[0];
        const BaseView& view = views[window_slot(window)];
        auto& learner = own[window_slot(window)];
        if (!learner) learner = std::make_unique<SlideLearner>(image.layout().space, view.space);
        learner->add(as_words(buffer.data() + i * kPageBytes),
                     as_words(view.bytes.data() + window_unit(window) * kWindowStep));
      }
    }
  });
  std::vector<SlideTable> tables;
  if (reuse != nullptr) tables = reuse->encoded().slides();
  for (size_t slot = tables.size(); slot < views.size(); ++slot) {
    SlideLearner* all = nullptr;
    for (auto& own : learners) {
      if (!own[slot]) continue;
      if (all == nullptr) {
        all = own[slot].get();
      } else {
        all->merge(*own[slot]);
      }
    }
    tables.push_back(all != nullptr ? all->finish() : SlideTable());
  }
  return tables;
}

Dictionary learn_dictionary(const MemoryImage& image, const WindowPlan& plan, std::span<const BaseView> views,
                            std::span<const BaseWords> bases, SimdLevel simd) {
  const PredictFn predict = predict_kernel(simd);
  const DiffFn diff = diff_kernel(simd);
  WordCounter counter;
  const PageBuffer buffer(MemoryImage::kReadPages);
  alignas(64) uint64_t predicted[kWordsPerPage];
  for (uint64_t page = 0; page < image.page_count();) {
    std::vector<uint64_t> sample;
    for (; page < image.page_count() && sample.size() < MemoryImage::kReadPages; page += kDictionaryStride)
      if (window_fits(plan.windows(page)[0], views)) sample.push_back(page);
    image.gather(sample, buffer.data());
    for (size_t i = 0; i < sample.size(); ++i) {
      const uint64_t window = plan.windows(sample[i])[0];
      const BaseWords& base = bases[window_slot(window)];
      predict(base.predictor, as_words(base.bytes.data() + window_unit(window) * kWindowStep), predicted,
              kAllLines);
      count_exceptions(as_words(buffer.data() + i * kPageBytes), predicted, diff, counter);
    }
  }
  return counter.dictionary();
}

}  // namespace medes
