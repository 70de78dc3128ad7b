#include "dedup/reuse.h"

#include <algorithm>
#include <unordered_map>

#include "common/error.h"

namespace medes {
namespace {

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

}  // namespace

Reuse::Reuse(const ImageLayout& now, const ImageLayout& before, std::shared_ptr<const EncodedImage> encoded)
    : now_(now),
      before_(before),
      encoded_(std::move(encoded)),
      processes_(same_processes(now, before)),
      old_pages_(now.page_count, kNoPage) {
  if (before.page_count != encoded_->page_count())
    throw Error(Code::invalid_argument, "layout and encoded image are not of one image");
}

void Reuse::look(uint64_t first, uint64_t count, const std::byte* pages) {
  uint64_t found = 0;
  for (uint64_t page = first; page < first + count; ++page, pages += kPageBytes) {
    const PageRun& run = now_.run_of(page);
    if (processes_[run.process] == kNoProcess) continue;
    const uint64_t address = run.address + (page - run.first_page) * kPageBytes;
    const uint64_t old = before_.find(processes_[run.process], address);
    if (old == kNoPage || !is_reusable(static_cast<unsigned>(encoded_->stored_kind(old)))) continue;
    if (!encoded_->matches(old, pages)) continue;
    old_pages_[page] = old;
    ++found;
  }
  reused_.fetch_add(found, std::memory_order_relaxed);
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
