// Pages that came back go again, taken away by the driver itself while the process stands still.
#include <algorithm>
#include <mutex>

#include "serving/process_memory.h"

namespace medes {

std::vector<uint64_t> ProcessMemory::restored_pages() const {
  std::vector<uint64_t> pages;
  for (uint64_t page = first_page_; page < end_page_; ++page)
    if (state(page) == PageState::restored) pages.push_back(page);
  return pages;
}

bool ProcessMemory::all_out_between(uint64_t page, uint64_t next) const {
  for (uint64_t p = page + 1; p < next; ++p)
    if (state(p) != PageState::evicted) return false;
  return true;
}

// Each range costs a system call's event and two changes of threads, walking over pages that are out next to
// nothing. Those are marked, too: nobody may place one while the call is under way.
std::vector<AddressRange> ProcessMemory::begin_reclaim(std::span<const uint64_t> pages) {
  const std::unique_lock lock(mutex_);
  marked_.clear();
  going_ = 0;
  // Before a page is marked: the next agent must find where it was.
  const auto moves = moves_to_note();
  if (moves.size() > ChangeRecord::kMaxMoves) return {};
  log_.commit(moves);
  reclaiming_ = true;
  std::vector<AddressRange> ranges;
  uint64_t last = ImageLayout::kNoPage, together = 0;  // pages from `last` on that lie in a row
  for (const uint64_t page : pages) {
    if (state(page) != PageState::restored) continue;
    const PageRun& run = layout_.run_of(page);
    const auto where = segments_.place_of(run.address + (page - run.first_page) * kPageBytes);
    if (where.bytes == 0) continue;
    const bool joined = last != ImageLayout::kNoPage && last >= run.first_page && page - last < together &&
                        all_out_between(last, page);
    for (uint64_t p = joined ? last + 1 : page; p <= page; ++p)
      states_[p].store(static_cast<uint8_t>(PageState::evicting), std::memory_order_release);
    if (joined) {
      ranges.back().end = where.address + kPageBytes;
      marked_.back().count = page + 1 - marked_.back().first_page;
    } else {
      ranges.push_back({where.address, where.address + kPageBytes});
      marked_.push_back({page, 1});
    }
    ++going_;
    last = page, together = where.bytes / kPageBytes;
  }
  return ranges;
}

void ProcessMemory::end_reclaim(std::span<const PageSpan> there) {
  {
    const std::unique_lock lock(mutex_);
    for (const auto& span : there)
      for (uint64_t i = 0; i < span.count; ++i) {
        const uint64_t page = page_at(span.address + i * kPageBytes);
        if (page == ImageLayout::kNoPage || state(page) != PageState::evicting) continue;
        states_[page].store(static_cast<uint8_t>(PageState::restored), std::memory_order_release);
        --going_;
      }
    for (const auto& m : marked_)
      for (uint64_t page = m.first_page; page < m.first_page + m.count; ++page)
        if (state(page) == PageState::evicting)
          states_[page].store(static_cast<uint8_t>(PageState::evicted), std::memory_order_release);
    missing_.fetch_add(going_);
    placed_.fetch_sub(going_);
    reclaiming_ = false;
  }
  wake_all();  // who was about to get a page meanwhile asks once more
}

}  // namespace medes
