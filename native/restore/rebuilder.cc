#include "restore/rebuilder.h"

#include <algorithm>
#include <deque>

#include "common/fault_point.h"

namespace medes {
namespace {

// A batch is large enough to be carried at full rate, and small enough that what waits for its first page
// begins early. While one is unpacked and decrypted here the holder sends the next.
constexpr size_t kFirstBatchPages = 64, kBatchPages = 256, kBatchesInFlight = 3;

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

// What `pages` are made of, in slots of `bases`.
Code Rebuilder::extents(Worker& worker, std::span<const uint64_t> pages, std::vector<Extent>& out) const {
  out.clear();
  for (uint64_t page : pages)
    if (const Code code = encoded_.extents(page, *worker.scratch_, out); code != Code::ok) return code;
  for (auto& e : out) {
    if (e.base_slot >= slots_.size()) return Code::corrupt;
    e.base_slot = slots_[e.base_slot];
  }
  return Code::ok;
}

Code Rebuilder::fetch(Worker& worker, std::span<const uint64_t> pages, std::chrono::nanoseconds timeout) {
  if (all_local_ || pages.empty()) return Code::ok;
  const Timer timer(fetch_ns_);
  std::vector<Extent> wanted;
  if (const Code code = extents(worker, pages, wanted); code != Code::ok) return code;
  return bases_.ensure(wanted, timeout);
}

Code Rebuilder::fetch_in_order(Worker& worker, std::span<const uint64_t> pages,
                               const std::function<bool()>& stop) {
  if (all_local_) return Code::ok;
  const Timer timer(fetch_ns_);
  std::deque<std::unique_ptr<BaseSet::Load>> in_flight;
  std::vector<Extent> wanted;
  const auto finish_first = [&] {
    const Code code = in_flight.front()->finish(kFetchTimeout);
    in_flight.pop_front();
    return code;
  };
  size_t batch = kFirstBatchPages;
  for (size_t at = 0; at < pages.size() && !stop(); batch = kBatchPages) {
    const auto part = pages.subspan(at, std::min(batch, pages.size() - at));
    at += part.size();
    if (const Code code = extents(worker, part, wanted); code != Code::ok) return code;
    try {
      if (auto load = bases_.begin(wanted)) in_flight.push_back(std::move(load));
    } catch (const Error& e) {
      return e.code;
    }
    if (in_flight.size() < kBatchesInFlight) continue;
    if (const Code code = finish_first(); code != Code::ok) return code;
  }
  while (!in_flight.empty())
    if (const Code code = finish_first(); code != Code::ok) return code;
  // What others were reading meanwhile.
  if (stop()) return Code::ok;
  for (size_t at = 0; at < pages.size(); at += kBatchPages) {
    const auto part = pages.subspan(at, std::min(kBatchPages, pages.size() - at));
    if (const Code code = extents(worker, part, wanted); code != Code::ok) return code;
    if (const Code code = bases_.ensure(wanted, kFetchTimeout); code != Code::ok) return code;
  }
  return Code::ok;
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
  Code code = fetch(worker, claimed, kFetchTimeout);
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
