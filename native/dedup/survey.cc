#include "dedup/survey.h"

#include "common/thread_pool.h"
#include "common/wiped.h"

namespace medes {
namespace {

// Calls body(first, count) for each stretch of pages in [begin, end) that are not taken over.
template <typename Body>
void for_each_fresh(const Reuse* reuse, uint64_t begin, uint64_t end, const Body& body) {
  while (begin < end) {
    uint64_t stop = begin;
    while (stop < end && (reuse == nullptr || reuse->old_page(stop) == Reuse::kNoPage)) ++stop;
    if (stop > begin) body(begin, stop - begin);
    begin = stop + 1;
  }
}

}  // namespace

Survey survey_image(const MemoryImage& image, uint32_t samples_per_page, const FingerprintIndex& index,
                    const EarlierImage& earlier, const CancelFlag* cancel, SimdLevel level) {
  const Fingerprinter fingerprinter(image.layout().space, samples_per_page, level);
  const uint64_t pages = image.page_count();
  Survey out{fingerprinter.make(pages), Locations(pages, samples_per_page), nullptr};
  if (earlier.encoded != nullptr)
    out.reuse = std::make_unique<Reuse>(image.layout(), *earlier.layout, earlier.encoded);
  const FingerprintIndex::View view(index);
  uint64_t* const places = out.locations.packed().data();
  ThreadPool::shared().parallel_for(pages, MemoryImage::kReadPages, [&](size_t begin, size_t end) {
    static thread_local ThreadScratch<PageBuffer> thread_buffer(MemoryImage::kReadPages);
    const PageBuffer& buffer = thread_buffer.use();
    check_cancelled(cancel);
    const std::byte* const bytes = image.read(begin, end - begin, buffer.data());
    if (out.reuse != nullptr) out.reuse->look(begin, end - begin, bytes);
    for_each_fresh(out.reuse.get(), begin, end, [&](uint64_t first, uint64_t count) {
      fingerprinter.add(bytes + (first - begin) * kPageBytes, first, count, out.fingerprints);
      const size_t at = first * samples_per_page;
      view.find(std::span(out.fingerprints.hashes).subspan(at, count * samples_per_page),
                places + at * kMaxLocations);
    });
  });
  view.name_bases(out.locations);
  return out;
}

}  // namespace medes
