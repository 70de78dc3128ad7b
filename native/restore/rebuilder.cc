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

// What the node keeps of the bases, held for one piece of work.
struct Rebuilder::Kept {
  std::vector<std::shared_ptr<const KeptBase>> bases;  // by slot of the image; none where nothing is kept
  std::vector<BaseView> views;

  // Of a page's extents. A base that is here has all of its own.
  bool has(std::span<const Extent> extents, const BaseSet& set, std::span<const uint32_t> slots) const {
    return std::all_of(extents.begin(), extents.end(), [&](const Extent& e) {
      return bases[e.base_slot] ? bases[e.base_slot]->has(e) : set.local(slots[e.base_slot]);
    });
  }
};

Rebuilder::Kept Rebuilder::kept() const {
  Kept found;
  if (all_local_) return found;
  for (uint32_t slot : slots_) found.bases.push_back(bases_.kept(slot));
  if (std::none_of(found.bases.begin(), found.bases.end(), [](const auto& base) { return base != nullptr; }))
    return {};
  found.views = views_;
  for (size_t i = 0; i < found.bases.size(); ++i)
    if (found.bases[i]) found.views[i].bytes = found.bases[i]->bytes();
  return found;
}

// What `pages` are made of and is not kept here, in slots of `bases`. `from_kept`: which need none of that.
Code Rebuilder::absent(Worker& worker, std::span<const uint64_t> pages, const Kept& kept,
                       std::vector<Extent>& out, std::bitset<kBlockPages>* from_kept) const {
  out.clear();
  for (size_t i = 0; i < pages.size(); ++i) {
    const size_t first = out.size();
    if (const Code code = encoded_.extents(pages[i], *worker.scratch_, out); code != Code::ok) return code;
    const auto of_page = std::span(out).subspan(first);
    for (const Extent& e : of_page)
      if (e.base_slot >= slots_.size()) return Code::corrupt;
    if (!kept.views.empty() && kept.has(of_page, bases_, slots_)) {
      if (from_kept) from_kept->set(i);
      out.resize(first);
      continue;
    }
    for (Extent& e : of_page) e.base_slot = slots_[e.base_slot];
  }
  return Code::ok;
}

Code Rebuilder::fetch(Worker& worker, std::span<const uint64_t> pages, For what,
                      std::chrono::nanoseconds timeout) {
  if (all_local_ || pages.empty()) return Code::ok;
  const Timer timer(fetch_ns_);
  std::vector<Extent> wanted;
  if (const Code code = absent(worker, pages, kept(), wanted, nullptr); code != Code::ok) return code;
  if (what == For::working_set) bases_.want(wanted);
  return bases_.ensure(wanted, timeout);
}

Code Rebuilder::fetch_in_order(Worker& worker, std::span<const uint64_t> pages, For what,
                               const std::function<bool()>& stop) {
  if (all_local_) return Code::ok;
  const Timer timer(fetch_ns_);
  const Kept kept = this->kept();
  std::deque<std::unique_ptr<BaseSet::Load>> in_flight;
  std::vector<Extent> wanted;
  const auto finish_first = [&] {
    const Code code = in_flight.front()->finish(kFetchTimeout);
    in_flight.pop_front();
    return code;
  };
  std::vector<std::span<const uint64_t>> of_others;
  size_t batch = kFirstBatchPages;
  for (size_t at = 0; at < pages.size() && !stop(); batch = kBatchPages) {
    const auto part = pages.subspan(at, std::min(batch, pages.size() - at));
    at += part.size();
    if (const Code code = absent(worker, part, kept, wanted, nullptr); code != Code::ok) return code;
    if (what == For::working_set) bases_.want(wanted);
    try {
      bool others = false;
      if (auto load = bases_.begin(wanted, others)) in_flight.push_back(std::move(load));
      if (others) of_others.push_back(part);
    } catch (const Error& e) {
      return e.code;
    }
    if (in_flight.size() < kBatchesInFlight) continue;
    if (const Code code = finish_first(); code != Code::ok) return code;
  }
  while (!in_flight.empty())
    if (const Code code = finish_first(); code != Code::ok) return code;
  for (const auto& part : of_others) {
    if (stop()) break;
    if (const Code code = absent(worker, part, kept, wanted, nullptr); code != Code::ok) return code;
    if (const Code code = bases_.ensure(wanted, kFetchTimeout); code != Code::ok) return code;
  }
  return Code::ok;
}

// Into the worker's buffer. What does not fit its tag although the node kept all that it is made of is made
// once more of what the holder sends: only that decides.
Code Rebuilder::decode(Worker& worker, std::span<const uint64_t> pages, For what) {
  std::bitset<kBlockPages> from_kept;
  std::vector<Extent> wanted;
  const Kept kept = this->kept();
  if (!all_local_) {
    const Timer timer(fetch_ns_);
    if (const Code code = absent(worker, pages, kept, wanted, &from_kept); code != Code::ok) return code;
    if (what == For::working_set) bases_.want(wanted);
    if (const Code code = bases_.ensure(wanted, kFetchTimeout); code != Code::ok) return code;
    if (from_kept.any()) bases_.count_kept_used(from_kept.count());
  }
  const Timer timer(apply_ns_);
  for (size_t i = 0; i < pages.size(); ++i) {
    std::byte* const out = worker.bytes_.data() + i * kPageBytes;
    const uint64_t next = i + 1 < pages.size() ? pages[i + 1] : ImageLayout::kNoPage;
    Code code = encoded_.decode(pages[i], next, from_kept[i] ? kept.views : views_, out, *worker.scratch_);
    if (code == Code::corrupt && from_kept[i]) {
      bases_.drop_kept();
      code = absent(worker, pages.subspan(i, 1), {}, wanted, nullptr);
      if (code == Code::ok) code = bases_.ensure(wanted, kFetchTimeout);
      if (code == Code::ok) code = encoded_.decode(pages[i], views_, out, *worker.scratch_);
    }
    if (code != Code::ok) return code;
  }
  return Code::ok;
}

Code Rebuilder::rebuild(Worker& worker, std::span<const uint64_t> pages, For what, PageClaims& claims,
                        Placer& placer, uint64_t& placed) {
  uint64_t mine[kBlockPages];
  size_t n = 0;
  for (uint64_t page : pages.first(std::min(pages.size(), kBlockPages)))
    if (claims.claim(page)) mine[n++] = page;
  if (n == 0) return Code::ok;
  worker.used_ = std::max(worker.used_, n * kPageBytes);
  const std::span<const uint64_t> claimed(mine, n);
  Code code = decode(worker, claimed, what);
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
