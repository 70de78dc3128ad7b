#include "restore/rebuilder.h"

#include <algorithm>

#include "common/fault_point.h"

namespace medes {
namespace {

class Timer {
 public:
  explicit Timer(std::atomic<uint64_t>& sum) : sum_(sum), begin_(std::chrono::steady_clock::now()) {}
  ~Timer() {
    sum_ += static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begin_)
            .count());
  }

 private:
  std::atomic<uint64_t>& sum_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace

Rebuilder::Worker::Worker() : bytes_(kBlockPages * kPageBytes), scratch_(EncodedImage::make_scratch()) {}
Rebuilder::Worker::~Worker() = default;

void Rebuilder::Worker::wipe() noexcept {
  medes::wipe(bytes_.data(), used_);
  used_ = 0;
  EncodedImage::wipe(*scratch_);
}

Rebuilder::Rebuilder(const ImageLayout& layout, const EncodedImage& encoded, BaseSet& bases)
    : layout_(layout), encoded_(encoded), bases_(bases), views_(bases.views_for(encoded.base_ids())) {
  for (uint64_t id : encoded.base_ids()) {
    slots_.push_back(bases.slot_of(id));
    all_local_ &= bases.local(slots_.back());
  }
}

Code Rebuilder::fetch(std::span<const uint64_t> pages, std::chrono::nanoseconds timeout) {
  if (all_local_ || pages.empty()) return Code::ok;
  const Timer timer(fetch_ns_);
  std::vector<Extent> extents;
  try {
    for (size_t i = 0; i < pages.size();) {
      size_t n = 1;
      while (i + n < pages.size() && pages[i + n] == pages[i] + n) ++n;
      encoded_.extents(pages[i], n, extents);
      i += n;
    }
  } catch (const Error& e) {
    return e.code;
  }
  for (auto& e : extents) e.base_slot = slots_.at(e.base_slot);
  return bases_.ensure(extents, timeout);
}

Code Rebuilder::rebuild(Worker& worker, std::span<const uint64_t> pages, PageClaims& claims, Placer& placer,
                        uint64_t& placed) {
  uint64_t mine[kBlockPages];
  size_t n = 0;
  for (uint64_t page : pages.first(std::min(pages.size(), kBlockPages)))
    if (claims.claim(page)) mine[n++] = page;
  if (n == 0) return Code::ok;
  worker.used_ = std::max(worker.used_, n * kPageBytes);
  const std::span<const uint64_t> claimed(mine, n);
  Code code = fetch(claimed, kFetchTimeout);
  if (code == Code::ok) {
    const Timer timer(apply_ns_);
    for (size_t i = 0; i < n && code == Code::ok; ++i)
      code = encoded_.decode(mine[i], i + 1 < n ? mine[i + 1] : ImageLayout::kNoPage, views_,
                             worker.bytes_.data() + i * kPageBytes, *worker.scratch_);
  }
  fault_point("restore.rebuilt");
  if (code == Code::ok) code = place_runs(worker, claimed, placer);
  if (code == Code::ok) placed += n;
  for (uint64_t page : claimed) claims.unclaim(page);
  return code;
}

Code Rebuilder::place_runs(Worker& worker, std::span<const uint64_t> pages, Placer& placer) {
  const Timer timer(place_ns_);
  for (size_t i = 0; i < pages.size();) {
    size_t n = 1;
    while (i + n < pages.size() && pages[i + n] == pages[i] + n && layout_.adjacent(pages[i + n - 1])) ++n;
    const Code code = placer.place(pages[i], n, worker.bytes_.data() + i * kPageBytes);
    if (code != Code::ok) return code;
    i += n;
  }
  return Code::ok;
}

}  // namespace medes
