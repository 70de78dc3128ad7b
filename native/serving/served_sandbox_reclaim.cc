// What a dormant sandbox was touched at, and does not need any more, goes again; what it touches soon after
// that is its tick, and stays.
#include <algorithm>
#include <mutex>

#include "serving/rebuild_work.h"
#include "serving/served_sandbox.h"

namespace medes {
namespace {

// A page that is wanted again within it costs more to take away (a share of a stop, a fault) than it saves.
constexpr std::chrono::seconds kTick{60};

}  // namespace

bool ServedSandbox::begin_reclaim() {
  const std::lock_guard lock(mutex_);
  if (state() != LiveState::dormant || held_ || detached_ || reclaiming_) return false;
  reclaiming_ = true;
  ++reclaim_steps_;
  ++running_;
  stays_.resize(file_->layout().page_count);
  reclaimed_.resize(file_->layout().page_count);
  return true;
}

std::vector<uint64_t> ServedSandbox::reclaim_candidates(const ProcessMemory& memory, uint64_t& ticks) const {
  std::vector<uint64_t> pages = memory.restored_pages();
  const std::lock_guard lock(mutex_);
  ticks += std::erase_if(pages, [&](uint64_t page) { return stays_[page]; });
  return pages;
}

void ServedSandbox::reclaim_step() {
  const std::lock_guard lock(mutex_);
  ++reclaim_steps_;
}

void ServedSandbox::keep_changed(std::span<const uint64_t> pages) {
  const std::lock_guard lock(mutex_);
  for (const uint64_t page : pages) {
    if (!stays_[page]) ++staying_;
    stays_[page] = true;
  }
}

// A wake may have come meanwhile, and have found these pages there.
void ServedSandbox::end_reclaim(std::vector<uint64_t> taken) {
  {
    const std::lock_guard lock(mutex_);
    reclaiming_ = false;
    if (!taken.empty()) {
      reclaimed_at_ = Clock::now();
      std::fill(reclaimed_.begin(), reclaimed_.end(), false);
      for (const uint64_t page : taken) reclaimed_[page] = true;
    }
  }
  changed_.notify_all();
  for (const auto& memory : memories())  // what came meanwhile was left unread
    server_.enqueue(
        [self = shared_from_this(), memory] {
          WorkerLease worker;
          self->handle_readable(memory, *worker);
        },
        true);
  if (state() == LiveState::restoring)
    return server_.enqueue([self = shared_from_this()] { self->run_rest(RestoreOptions{}, 0); }, false);
  --running_;
  try_complete();
}

// mutex_ is held.
void ServedSandbox::look_for_tick(uint64_t page) {
  if (reclaimed_.empty() || !reclaimed_[page]) return;
  reclaimed_[page] = false;
  if (stays_[page] || Clock::now() - reclaimed_at_ > kTick) return;
  stays_[page] = true;
  ++staying_;
}

uint64_t ServedSandbox::reclaimable_pages() const {
  const uint64_t placed = placed_pages();
  const std::lock_guard lock(mutex_);
  return state() == LiveState::dormant && !held_ ? placed - std::min(placed, staying_) : 0;
}

std::vector<WorkingSetEntry> ServedSandbox::reclaimed() const {
  const std::lock_guard lock(mutex_);
  std::vector<WorkingSetEntry> entries;
  for (uint64_t page = 0; page < reclaimed_.size() && entries.size() < kMaxWorkingSetPages; ++page)
    if (reclaimed_[page]) entries.push_back(regions_.entry_of(page));
  return entries;
}

}  // namespace medes
