// Pages that somebody waits for: a fault, what is near it, and what becomes of a sandbox that nobody woke.
#include <algorithm>
#include <mutex>
#include <thread>

#include "common/fault_point.h"
#include "serving/rebuild_work.h"
#include "serving/served_sandbox.h"

namespace medes {
namespace {

constexpr std::chrono::seconds kBurst{1};  // touches that come within it are of one deed
// Between two looks at the room in the memory cgroup; what comes in between fits the room that is left to
// others.
constexpr uint64_t kTouchesPerLook = 32;
// A thread that serves a page of a peer's may wait for that peer, and there are few for the whole node: a
// sandbox that sleeps takes no more of them than this.
constexpr size_t kRemoteAsleep = 2, kRemoteAwake = 16;
// A page that is on its way out is asked for again when it is.
constexpr std::chrono::milliseconds kReclaimPause{1};

}  // namespace

void ServedSandbox::handle_readable(const std::shared_ptr<ProcessMemory>& memory, Rebuilder::Worker& worker) {
  std::vector<uint64_t> faults;
  drain(memory, faults);
  for (uint64_t address : faults) handle_fault(memory, address, worker);
  wake_if_whole();
}

// A process may end as soon as its last fork was read, while another thread still takes the child in: only
// with nothing on its way is it known that none is left.
void ServedSandbox::handle_exit(ProcessMemory& memory) {
  if (detached_) return;  // it is out of our hands, which says nothing of the process
  memory.mark_gone();
  if (!all_gone()) return;
  while (draining_ > 0) std::this_thread::yield();
  if (all_gone()) lose(Code::process_gone, "its processes have exited");
}

// A thread that a signal interrupts while it waits faults anew, as often as signals come, and another thread
// may touch the same page: that is no further touch, and the page is on its way to both.
bool ServedSandbox::ask_for(const ProcessMemory& memory, uint64_t what) {
  const std::lock_guard lock(mutex_);
  return asked_for_.try_emplace({&memory, what}, reclaim_steps_).second;
}

// A reclaim in between may have taken what came, or have been in the way; who touched it again since was told
// that it was on its way.
void ServedSandbox::asked_no_more(ProcessMemory& memory, uint64_t what) {
  {
    const std::lock_guard lock(mutex_);
    const auto asked = asked_for_.extract({&memory, what});
    if (asked.empty() || asked.mapped() == reclaim_steps_) return;
  }
  const bool is_page = what >= memory.first_page() && what < memory.end_page();
  const uint64_t address = is_page ? memory.address_of(what) : 0;
  if (address != 0) memory.wake(address);
}

// A program that ticks, or answers a probe, touches some pages and then no others: it gets them, and sleeps
// on. One that works goes on touching. Neighbours would only be memory that is back, and hide from the record
// what is touched.
bool ServedSandbox::only_touched(uint64_t page) {
  const std::lock_guard lock(mutex_);
  if (state() != LiveState::dormant) return false;
  const auto now = Clock::now();
  if (now - burst_.since >= kBurst) burst_ = {now, 0, touched_.size()};
  if (burst_.touches >= wake_rule_.touches_per_s_max) return false;
  uint64_t placed = 0, missing = 0;
  for (const auto& m : memories_)
    if (!m->gone()) placed += m->placed(), missing += m->missing();
  if (placed > missing) return false;  // what is left saves less than what an op anew would
  ++burst_.touches;
  look_for_tick(page);
  if (touched_.size() < kMaxWorkingSetPages) touched_.push_back(regions_.entry_of(page));
  return true;
}

void ServedSandbox::wake_if_whole() {
  if (state() != LiveState::dormant || detached_ || anything_missing() || all_gone()) return;
  {
    const std::lock_guard lock(mutex_);
    if (held_) return;  // it wakes when it is asked for
  }
  wake_by_fault();
}

void ServedSandbox::wake_by_fault() {
  {
    const std::lock_guard lock(mutex_);
    LiveState expected = LiveState::dormant;
    if (!state_.compare_exchange_strong(expected, LiveState::restoring)) return;
    restore_called_ = Clock::now();
    stats_.demand_woken = true;
    ++running_;
    // What led to it is the beginning of its work.
    const auto first = touched_.begin() + static_cast<ptrdiff_t>(std::min(burst_.first, touched_.size()));
    if (restore_called_ - burst_.since < kBurst) {
      recorded_.assign(first, touched_.end());
      touched_.erase(first, touched_.end());
    }
  }
  server_.emit(file_->path(), "demand_woken");
  if (!room_for_all()) short_of_memory();
  RestoreOptions options;
  {
    const std::lock_guard lock(mutex_);
    options.working_set = wake_rule_.working_set;
  }
  server_.enqueue([self = shared_from_this(), options = std::move(options)] { self->run(options); }, true);
}

void ServedSandbox::handle_fault(const std::shared_ptr<ProcessMemory>& memory, uint64_t address,
                                 Rebuilder::Worker& worker) {
  if (state() == LiveState::lost || detached_) return;  // it waits, rather than run on wrong bytes
  const uint64_t page = memory->missing_page_at(address);
  if (page == ImageLayout::kNoPage) {
    uint64_t placed = 0;
    const Code code = memory->place_zeros(address, placed);
    if (placed > 0) ++zero_faults_;
    zeros_ += placed;
    const auto again = [self = shared_from_this(), memory, address] {
      self->server_.fault_later(self, memory, address);
    };
    if (code == Code::busy && memory->reclaiming()) return server_.enqueue_later(again, true, kReclaimPause);
    if (code == Code::busy) again();
    if (code != Code::limit_exceeded) return;
    short_of_memory();
    if (!ask_for(*memory, ~address)) return;
    return server_.enqueue_later(
        [self = shared_from_this(), memory, address] {
          self->asked_no_more(*memory, ~address);
          self->server_.fault_later(self, memory, address);
        },
        true, memory_pause(kMemoryBackoffDoublings));
  }
  if (!ask_for(*memory, page)) return;
  fault_point("restore.fault");
  if (memory->is_forked_child() || !only_touched(page)) {
    wake_by_fault();
    ++faults_;
    last_fault_us_ = since_restore_us();
    record(*memory, page);
  }
  if (rebuilder_.all_local()) return serve_page(memory, page, worker);
  // The network may keep us waiting; fault threads serve other sandboxes meanwhile.
  {
    const std::lock_guard lock(mutex_);
    remote_waiting_.push_back({memory, page});
    if (remote_at_work_ >= (state() == LiveState::dormant ? kRemoteAsleep : kRemoteAwake)) return;
    ++remote_at_work_;
  }
  server_.enqueue([self = shared_from_this()] { self->serve_remote(); }, true);
}

void ServedSandbox::serve_remote() {
  WorkerLease worker;
  for (;;) {
    Waiting next;
    {
      const std::lock_guard lock(mutex_);
      if (remote_waiting_.empty()) {
        --remote_at_work_;
        return;
      }
      next = std::move(remote_waiting_.front());
      remote_waiting_.pop_front();
    }
    serve_page(next.memory, next.page, *worker);
  }
}

// Records the page that was touched. Children are left out: their pages are filled at once, whoever touches
// them.
void ServedSandbox::record(ProcessMemory& memory, uint64_t page) {
  if (memory.is_forked_child()) return;
  const std::lock_guard lock(mutex_);
  if (recorded_.size() < kMaxWorkingSetPages) recorded_.push_back(regions_.entry_of(page));
}

void ServedSandbox::serve_page(const std::shared_ptr<ProcessMemory>& memory, uint64_t page,
                               Rebuilder::Worker& worker, int tries) {
  const bool look =
      told_short_of_memory_ || (state() == LiveState::dormant && room_looks_++ % kTouchesPerLook == 0);
  if (look && !room_for(kPageBytes)) return serve_again(memory, page, tries);
  // Without a working set nothing is guessed, so that the record holds what is touched and nothing else.
  const bool dormant = state() == LiveState::dormant;
  FaultReadahead::Pages ahead;
  if (!dormant && !recording_afresh_ && !told_short_of_memory_) {
    ahead = readahead_.next(page);
    ahead = {std::max(ahead.begin, memory->first_page()), std::min(ahead.end, memory->end_page())};
    // A round trip for all of the block, not one for the page and another for the rest of it.
    fetch_missing(*memory, ahead.begin, std::min(ahead.begin + FaultReadahead::kBlockPages, ahead.end),
                  worker);
  }
  // The page itself first: a thread waits for it. What is near comes while that runs on.
  const Code code = serve_pages(memory, page, page + 1, Rebuilder::For::working_set, worker);
  if (code == Code::ok && ahead.begin != ahead.end) serve_around(memory, ahead, worker);
  if (code == Code::limit_exceeded) return serve_again(memory, page, tries);
  asked_no_more(*memory, page);
  if (dormant) wake_if_whole();
  try_complete();
}

// The thread waits on, for as long as its memory cgroup has no room; nobody else does.
void ServedSandbox::serve_again(const std::shared_ptr<ProcessMemory>& memory, uint64_t page, int tries) {
  short_of_memory();
  server_.enqueue_later(
      [self = shared_from_this(), memory, page, tries] {
        WorkerLease worker;
        self->serve_page(memory, page, *worker, tries + 1);
      },
      true, memory_pause(tries));
}

// One batch for the base pages behind those that are out; a failure shows again when they are rebuilt.
void ServedSandbox::fetch_missing(ProcessMemory& memory, uint64_t begin, uint64_t end,
                                  Rebuilder::Worker& worker) {
  if (rebuilder_.all_local()) return;
  std::vector<uint64_t> pages;
  for (uint64_t p = begin; p < end; ++p)
    if (memory.state(p) == PageState::evicted) pages.push_back(p);
  (void)rebuilder_.fetch(worker, pages, Rebuilder::For::once, kFetchTimeout);
}

// What may be touched next.
void ServedSandbox::serve_around(const std::shared_ptr<ProcessMemory>& memory, FaultReadahead::Pages ahead,
                                 Rebuilder::Worker& worker) {
  const auto [begin, end] = ahead;
  const uint64_t near = std::min(begin + FaultReadahead::kBlockPages, end);
  (void)serve_pages(memory, begin, near, Rebuilder::For::once, worker);
  if (near == end) return;
  // A walk: the rest comes from another thread, as this one is waited for by others.
  server_.enqueue(
      [self = shared_from_this(), memory, near, end = end] {
        WorkerLease worker;
        self->fetch_missing(*memory, near, end, *worker);
        for (uint64_t p = near; p < end; p += FaultReadahead::kBlockPages)
          (void)self->serve_pages(memory, p, std::min(p + FaultReadahead::kBlockPages, end),
                                  Rebuilder::For::once, *worker);
        self->try_complete();
      },
      true);
}

// At most a block of pages. A failure is dealt with here, but for limit_exceeded: there is no memory now.
// process_gone also when nobody wants them any more.
Code ServedSandbox::serve_pages(const std::shared_ptr<ProcessMemory>& memory, uint64_t begin, uint64_t end,
                                Rebuilder::For what, Rebuilder::Worker& worker) {
  if (state() == LiveState::lost || detached_ || memory->gone()) return Code::process_gone;
  uint64_t pages[FaultReadahead::kBlockPages];
  size_t n = 0;
  for (uint64_t p = begin; p < end; ++p) pages[n++] = p;
  MemoryClaims claims(*memory);
  uint64_t placed = 0;
  const Code code = rebuild_patiently(worker, std::span(pages, n), what, claims, *memory, placed);
  demanded_ += placed;
  if (code == Code::process_gone)
    handle_exit(*memory);
  else if (code != Code::ok && code != Code::limit_exceeded)
    lose(code, kRebuildFailed);
  return code;
}

}  // namespace medes
