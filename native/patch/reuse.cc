#include "patch/reuse.h"

#include <algorithm>
#include <unordered_map>

#include "common/checksum.h"
#include "common/error.h"
#include "common/thread_pool.h"

namespace medes {
namespace {

constexpr size_t kPagesPerTask = 256;
constexpr uint32_t kNoProcess = ~0u;

// Index in `before` of each process of `now`.
std::vector<uint32_t> same_processes(const ImageLayout& now, const ImageLayout& before) {
  std::vector<uint32_t> out;
  for (const auto& p : now.processes) {
    const auto it = std::find_if(before.processes.begin(), before.processes.end(), [&](const auto& b) {
      return b.pid == p.pid && b.start_time_ticks == p.start_time_ticks;
    });
    out.push_back(it == before.processes.end() ? kNoProcess
                                               : static_cast<uint32_t>(it - before.processes.begin()));
  }
  return out;
}

bool may_be_taken_over(PageKind kind) {
  return kind == PageKind::zero || kind == PageKind::identical || kind == PageKind::patch;
}

}  // namespace

Reuse::Reuse(const MemoryImage& image, const ImageLayout& before, const EncodedImage& encoded)
    : encoded_(encoded), old_pages_(image.page_count(), kNoPage) {
  if (before.page_count != encoded.page_count())
    throw Error(Code::invalid_argument, "layout and encoded image are not of one image");
  const ImageLayout& now = image.layout();
  const auto processes = same_processes(now, before);
  std::atomic<uint64_t> reused{0};
  ThreadPool::shared().parallel_for(old_pages_.size(), kPagesPerTask, [&](size_t begin, size_t end) {
    uint64_t found = 0;
    for (size_t page = begin; page < end; ++page) {
      const PageRun& run = now.run_of(page);
      if (processes[run.process] == kNoProcess) continue;
      const uint64_t address = run.address + (page - run.first_page) * kPageBytes;
      const uint64_t old = before.find(processes[run.process], address);
      if (old == kNoPage || !may_be_taken_over(encoded.kind(old))) continue;
      if (checksum64({image.page(page), kPageBytes}) != encoded.checksum(old)) continue;
      old_pages_[page] = old;
      ++found;
    }
    reused.fetch_add(found, std::memory_order_relaxed);
  });
  reused_ = reused.load();
}

Fingerprints fingerprint_changed(const MemoryImage& image, uint32_t samples_per_page, const Reuse& reuse) {
  if (reuse.page_count() != image.page_count())
    throw Error(Code::invalid_argument, "reuse is of another image");
  Fingerprints out = fingerprint_pages({}, image.layout().space, samples_per_page);
  const uint64_t pages = image.page_count();
  out.page_count = pages;
  out.hashes.resize(pages * samples_per_page);
  out.positions.resize(pages * samples_per_page);
  for (uint64_t page = 0; page < pages;) {
    const uint64_t first = page;
    while (page < pages && reuse.old_page(page) == Reuse::kNoPage) ++page;
    if (page == first) {
      ++page;
      continue;
    }
    const Fingerprints part =
        fingerprint_pages(image.bytes().subspan(first * kPageBytes, (page - first) * kPageBytes),
                          image.layout().space, samples_per_page);
    const auto at = static_cast<ptrdiff_t>(first * samples_per_page);
    std::copy(part.hashes.begin(), part.hashes.end(), out.hashes.begin() + at);
    std::copy(part.positions.begin(), part.positions.end(), out.positions.begin() + at);
  }
  return out;
}

WindowPlan plan_with_reuse(const WindowPlan& plan, const Reuse& reuse) {
  if (plan.page_count() != reuse.page_count())
    throw Error(Code::invalid_argument, "plan is of another image");
  WindowPlan out = plan;
  const auto old_ids = reuse.encoded().base_ids();
  out.base_ids_.assign(old_ids.begin(), old_ids.end());
  std::unordered_map<uint64_t, uint32_t> slots;
  for (uint32_t slot = 0; slot < old_ids.size(); ++slot) slots.emplace(old_ids[slot], slot);
  std::vector<uint32_t> moved;  // the plan's slot → ours
  for (uint64_t id : plan.base_ids_) {
    const auto [it, fresh] = slots.emplace(id, static_cast<uint32_t>(out.base_ids_.size()));
    if (fresh) out.base_ids_.push_back(id);
    moved.push_back(it->second);
  }
  if (out.base_ids_.size() > kMaxBasesPerImage)
    throw Error(Code::limit_exceeded, "too many bases in one image");
  const auto scratch = EncodedImage::make_scratch();
  for (uint64_t page = 0; page < out.page_count(); ++page) {
    uint64_t* const windows = out.windows_.data() + page * kMaxWindows;
    const uint64_t old = reuse.old_page(page);
    if (old == Reuse::kNoPage) {
      for (size_t i = 0; i < kMaxWindows; ++i)
        if (windows[i] != kNoWindow)
          windows[i] = pack_window(moved[window_slot(windows[i])], window_unit(windows[i]));
      continue;
    }
    StoredPage stored;
    if (!reuse.encoded().stored_windows(old, *scratch, stored))
      throw Error(Code::corrupt, "windows are malformed", "encoded image");
    std::fill(windows, windows + kMaxWindows, kNoWindow);
    std::copy(stored.windows.begin(), stored.windows.end(), windows);
  }
  return out;
}

}  // namespace medes
