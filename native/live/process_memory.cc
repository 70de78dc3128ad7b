#include "live/process_memory.h"

#include <sched.h>

#include <algorithm>
#include <ctime>
#include <mutex>
#include <utility>

#include "common/fault_point.h"
#include "memory/proc.h"

namespace medes {
namespace {

constexpr size_t kEventsPerRead = 64;
constexpr int kMaxUnregisterPasses = 1000;
constexpr uint64_t kMaxUserAddress = (1ull << 47) - kPageBytes;
constexpr uint64_t kNowhere = 1u << 20;   // an address no program maps: asking about it changes nothing
constexpr int kOutOfMemoryRetries = 200;  // with a pause of 5 ms each
constexpr timespec kOutOfMemoryPause{0, 5'000'000};

}  // namespace

ProcessMemory::ProcessMemory(pid_t pid, uint32_t process, const ImageLayout& layout, Uffd uffd,
                             std::span<std::atomic<uint8_t>> states)
    : pid_(pid), process_(process), layout_(layout), uffd_(std::move(uffd)), states_(states) {
  first_page_ = layout.page_count;
  for (const auto& run : layout.runs) {
    if (run.process != process) continue;
    first_page_ = std::min(first_page_, run.first_page);
    end_page_ = std::max(end_page_, run.first_page + run.count);
  }
  if (end_page_ < first_page_) first_page_ = end_page_;
  claims_ = std::vector<std::atomic<uint8_t>>(end_page_ - first_page_);
}

void ProcessMemory::count_missing() {
  uint64_t n = 0;
  for (uint64_t i = first_page_; i < end_page_; ++i) n += state(i) == PageState::evicted;
  missing_.store(n, std::memory_order_release);
}

bool ProcessMemory::claim(uint64_t page) {
  if (state(page) != PageState::evicted) return false;
  uint8_t expected = 0;
  if (!claims_[page - first_page_].compare_exchange_strong(expected, 1)) return false;
  if (state(page) == PageState::evicted) return true;
  unclaim(page);  // it came in between the two looks
  return false;
}

void ProcessMemory::unclaim(uint64_t page) { claims_[page - first_page_].store(0); }

void ProcessMemory::set_state(uint64_t page, PageState next) {
  const auto before = states_[page].exchange(static_cast<uint8_t>(next), std::memory_order_acq_rel);
  if (before == static_cast<uint8_t>(PageState::evicted) && next != PageState::evicted) missing_.fetch_sub(1);
}

// The program has no use any more for what the image holds for [begin, end): its pages there read as zero
// from now on (or are unmapped), and never come back.
void ProcessMemory::forget(uint64_t begin, uint64_t end) {
  for (const auto& r : segments_.origins_in(begin, end)) {
    for (const auto& run : layout_.runs) {
      if (run.process != process_) continue;
      const uint64_t b = std::max(r.begin, run.address);
      const uint64_t e = std::min(r.end, run.address + run.count * kPageBytes);
      for (uint64_t a = b; a < e; a += kPageBytes)
        set_state(run.first_page + (a - run.address) / kPageBytes, PageState::resident);
    }
  }
}

DrainedEvents ProcessMemory::drain(const AddressRange* own_discard) {
  DrainedEvents out;
  uffd_msg messages[kEventsPerRead];
  const std::unique_lock lock(mutex_);
  if (!uffd_) return out;
  for (;;) {
    const size_t n = uffd_.read_events(messages);
    for (size_t i = 0; i < n; ++i) {
      const auto& m = messages[i];
      if (m.event == UFFD_EVENT_PAGEFAULT)
        out.faults.push_back(m.arg.pagefault.address);
      else if (m.event != UFFD_EVENT_REMOVE || own_discard == nullptr ||
               m.arg.remove.start < own_discard->begin || own_discard->end < m.arg.remove.end)
        book(m);
    }
    if (n == kEventsPerRead) continue;
    end_deferral();
    out.children = std::exchange(born_, {});
    return out;
  }
}

// Books one event. Events of different threads may be read in another order than the kernel did what they
// tell of: a thread gives up an address, a second one moves its memory there, and the second one's event
// comes first. A move onto an address that we still think taken therefore waits for the event that frees it.
void ProcessMemory::book(const uffd_msg& m) {
  if (!try_book(m)) {
    deferred_.push_back(m);
    return;
  }
  for (bool progress = true; progress && !deferred_.empty();) {
    progress = false;
    const std::vector<uffd_msg> waiting = std::exchange(deferred_, {});
    for (const auto& w : waiting) {
      if (try_book(w))
        progress = true;
      else
        deferred_.push_back(w);
    }
  }
}

bool ProcessMemory::try_book(const uffd_msg& m) {
  if (m.event == UFFD_EVENT_REMAP) {
    const auto& r = m.arg.remap;
    if (segments_.overlaps(r.to, r.to + r.len)) return false;
    segments_.move(r.from, r.to, r.len);
    // The kernel also reports the old place as unmapped, maybe when somebody else lives there already.
    expected_unmaps_.push_back({r.from, r.from + r.len});
    return true;
  }
  if (m.event == UFFD_EVENT_FORK) {
    // The child's memory is as ours was, moves included that we cannot book yet. Until we can, the kernel
    // refuses to place pages, so that what is missing stays the same.
    if (!deferred_.empty()) return false;
    born_.push_back(fork(Uffd(UniqueFd(static_cast<int>(m.arg.fork.ufd)))));
    return true;
  }
  const AddressRange range{m.arg.remove.start, m.arg.remove.end};
  if (m.event == UFFD_EVENT_REMOVE) {
    for (const auto& w : deferred_)
      if (w.event == UFFD_EVENT_REMAP && range.begin < w.arg.remap.to + w.arg.remap.len &&
          w.arg.remap.to < range.end)
        return false;  // speaks of what is to be moved there
    forget(range.begin, range.end);
  } else if (m.event == UFFD_EVENT_UNMAP) {
    const auto expected =
        std::find_if(expected_unmaps_.begin(), expected_unmaps_.end(),
                     [&](const AddressRange& e) { return e.begin == range.begin && e.end == range.end; });
    if (expected != expected_unmaps_.end()) {
      expected_unmaps_.erase(expected);
      return true;
    }
    forget(range.begin, range.end);
    segments_.remove(range.begin, range.end);
  }
  return true;
}

// A thread is between entering a call that changes mappings and the reading of its event.
bool ProcessMemory::changing() const {
  uint64_t done = 0;
  return uffd_.zero(kNowhere, 1, done) == UffdResult::again;
}

// When the kernel says that no call is under way, nothing that we wait for can come any more.
void ProcessMemory::end_deferral() {
  if (deferred_.empty() && expected_unmaps_.empty()) return;
  if (changing()) return;
  expected_unmaps_.clear();
  for (const auto& m : std::exchange(deferred_, {})) {
    if (m.event == UFFD_EVENT_REMAP) {
      forget(m.arg.remap.to, m.arg.remap.to + m.arg.remap.len);
      segments_.remove(m.arg.remap.to, m.arg.remap.to + m.arg.remap.len);
    }
    (void)try_book(m);
  }
  expected_unmaps_.clear();
}

uint64_t ProcessMemory::missing_page_at(uint64_t address) {
  const std::shared_lock lock(mutex_);
  const auto origin = segments_.origin_of(address);
  if (!origin) return ImageLayout::kNoPage;
  const uint64_t page = layout_.find(process_, *origin);
  if (page == ImageLayout::kNoPage || state(page) != PageState::evicted) return ImageLayout::kNoPage;
  return page;
}

Code ProcessMemory::place_zero(uint64_t address) {
  address &= ~(kPageBytes - 1);
  for (int failures = 0;;) {
    UffdResult result;
    {
      const std::shared_lock lock(mutex_);
      if (!uffd_) return Code::ok;
      const auto origin = segments_.origin_of(address);
      const uint64_t page = origin ? layout_.find(process_, *origin) : ImageLayout::kNoPage;
      if (page != ImageLayout::kNoPage && state(page) == PageState::evicted) return Code::busy;
      uint64_t done = 0;
      result = uffd_.zero(address, 1, done);
    }
    switch (result) {
      case UffdResult::ok: return Code::ok;
      case UffdResult::again:
        if (on_events_) on_events_();
        sched_yield();
        continue;
      case UffdResult::gone: gone_ = true; return Code::process_gone;
      case UffdResult::exists:
      case UffdResult::unmapped: wake(address); return Code::ok;
      case UffdResult::failed:
        // Out of memory: when it lasts, the thread faults again rather than hold this one up for ever.
        if (++failures > kOutOfMemoryRetries) {
          wake(address);
          return Code::limit_exceeded;
        }
        nanosleep(&kOutOfMemoryPause, nullptr);
        continue;
    }
  }
}

// Places as much as lies together and is still wanted, from `page` on; `done` gets how many pages are
// settled (in place, or not wanted any more). busy: events must be read first.
Code ProcessMemory::place_once(uint64_t page, uint64_t count, const std::byte* bytes, uint64_t& done) {
  const std::shared_lock lock(mutex_);
  done = 0;
  if (!uffd_) return Code::process_gone;
  while (done < count && state(page + done) != PageState::evicted) ++done;
  if (done > 0) return Code::ok;
  const PageRun& run = layout_.run_of(page);
  const auto where = segments_.place_of(run.address + (page - run.first_page) * kPageBytes);
  if (where.bytes == 0) {
    set_state(page, PageState::resident);
    done = 1;
    return Code::ok;
  }
  uint64_t together = std::min(count, where.bytes / kPageBytes);
  for (uint64_t i = 1; i < together; ++i)
    if (state(page + i) != PageState::evicted) together = i;
  uint64_t placed = 0;
  UffdResult result = uffd_.copy(where.address, bytes, together, placed);
  if (result == UffdResult::unmapped && placed == 0 && together > 1)
    // A run must lie in one mapping, and mprotect cuts mappings without an event: page by page, then.
    result = uffd_.copy(where.address, bytes, 1, placed);
  for (uint64_t i = 0; i < placed; ++i) set_state(page + i, PageState::restored);
  done = placed;
  switch (result) {
    case UffdResult::ok: return Code::ok;
    case UffdResult::exists:
      set_state(page + placed, PageState::restored);
      uffd_.wake(where.address + placed * kPageBytes, 1);
      ++done;
      return Code::ok;
    case UffdResult::unmapped:
      // The kernel looks for the mapping before it looks whether mappings change: it may just have moved. No
      // event can have been read since we took the lock, so asking now tells the two apart.
      if (placed > 0) return Code::ok;  // what is left is looked at by itself
      if (changing()) return Code::busy;
      set_state(page + placed, PageState::resident);
      uffd_.wake(where.address + placed * kPageBytes, 1);
      ++done;
      return Code::ok;
    case UffdResult::again: return Code::busy;
    case UffdResult::gone: gone_ = true; return Code::process_gone;
    case UffdResult::failed: return Code::limit_exceeded;
  }
  return Code::internal;
}

Code ProcessMemory::place(uint64_t first_page, uint64_t count, const std::byte* bytes) {
  int failures = 0;
  while (count > 0) {
    fault_point("restore.place");
    uint64_t done = 0;
    const Code code = place_once(first_page, count, bytes, done);
    first_page += done, count -= done, bytes += done * kPageBytes;
    if (code == Code::ok) continue;
    if (code == Code::busy) {
      if (on_events_) on_events_();
      sched_yield();
      continue;
    }
    if (code != Code::limit_exceeded || ++failures > kOutOfMemoryRetries) return code;
    nanosleep(&kOutOfMemoryPause, nullptr);  // the sandbox is at its memory limit: reclaim may help
  }
  return Code::ok;
}

// The program runs on while its mappings are given back one by one, so one that moves or grows may slip
// through a pass. A move shows as an event, growth in a second look at the maps; then there is another pass.
void ProcessMemory::unregister_all() {
  const std::unique_lock lock(mutex_);
  if (!uffd_ || pid_ == 0 || gone()) return;  // a forked child's only descriptor is ours: closing it does all
  try {
    std::vector<AddressRange> given_back;
    for (int pass = 0; pass < kMaxUnregisterPasses; ++pass) {
      const size_t before = given_back.size();
      unregister_new(given_back);
      if (settle_events())
        given_back.clear();
      else if (given_back.size() == before)
        return;
    }
  } catch (const Error&) {
    gone_ = true;
  }
}

// Gives back what is not in `given_back` (ascending) yet, and adds it there.
void ProcessMemory::unregister_new(std::vector<AddressRange>& given_back) {
  const auto by_end = [](const AddressRange& a, const AddressRange& b) { return a.end < b.end; };
  std::vector<AddressRange> fresh;
  uint64_t last_end = 0;
  const auto vmas = read_maps(pid_);
  for (size_t i = 0; i < vmas.size(); ++i) {
    const Vma& v = vmas[i];
    const bool ours = v.kind == VmaKind::anonymous || v.kind == VmaKind::heap || v.kind == VmaKind::stack;
    // It may grow while we look, a stack downwards: the gap on that side is given back with it, so that no
    // mapping is ever cut in two.
    const uint64_t next_begin = i + 1 < vmas.size() ? std::max(vmas[i + 1].begin, v.end) : v.end;
    const AddressRange range{v.kind == VmaKind::stack ? last_end : v.begin,
                             v.kind == VmaKind::stack || next_begin > kMaxUserAddress ? v.end : next_begin};
    last_end = v.end;
    const auto near = std::lower_bound(given_back.begin(), given_back.end(), range, by_end);
    const bool known = near != given_back.end() && near->begin <= v.begin;
    if (!ours || known) continue;
    (void)uffd_.unregister(range.begin, range.end);
    fresh.push_back(range);
  }
  given_back.insert(given_back.end(), fresh.begin(), fresh.end());
  std::sort(given_back.begin(), given_back.end(), by_end);
}

// A call of the program that began before the last mapping was given back waits for its event to be read.
// The kernel answers "again" as long as there is such a call. True when a mapping moved.
bool ProcessMemory::settle_events() {
  uffd_msg messages[kEventsPerRead];
  bool moved = false;
  for (;;) {
    const size_t n = uffd_.read_events(messages);
    for (size_t i = 0; i < n; ++i) {
      const auto& m = messages[i];
      // Nothing was missing when it was forked, so the child has all of its pages: its descriptor can go.
      if (m.event == UFFD_EVENT_FORK) UniqueFd(static_cast<int>(m.arg.fork.ufd)).reset();
      if (m.event == UFFD_EVENT_PAGEFAULT) uffd_.wake(m.arg.pagefault.address & ~(kPageBytes - 1), 1);
      moved |= m.event == UFFD_EVENT_REMAP;
    }
    if (n == 0 && !changing()) return moved;
  }
}

void ProcessMemory::wake_all() {
  const std::shared_lock lock(mutex_);
  if (!uffd_) return;
  for (const auto& s : segments_.all()) uffd_.wake(s.begin, (s.end - s.begin) / kPageBytes);
}

void ProcessMemory::close() {
  const std::unique_lock lock(mutex_);
  uffd_.close();
}

std::shared_ptr<ProcessMemory> ProcessMemory::fork(Uffd uffd) const {
  auto child = std::make_shared<ProcessMemory>(0, process_, layout_, std::move(uffd), states_);
  child->own_states_ = std::vector<std::atomic<uint8_t>>(states_.size());
  // `evicting` is only met while an interrupted eviction is cleared up: the page may be there or not, and
  // placing finds out.
  for (uint64_t i = first_page_; i < end_page_; ++i) {
    const PageState s = state(i);
    child->own_states_[i] = static_cast<uint8_t>(s == PageState::evicting ? PageState::evicted : s);
  }
  child->states_ = child->own_states_;
  child->segments_ = segments_;
  child->count_missing();
  return child;
}

}  // namespace medes
