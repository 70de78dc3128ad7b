#include "live/process_memory.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <mutex>
#include <utility>

#include "common/fault_point.h"
#include "live/tracee.h"
#include "memory/proc.h"

namespace medes {
namespace {

constexpr size_t kEventsPerRead = 64;
constexpr int kMaxUnregisterPasses = 1000;
constexpr uint64_t kMaxUserAddress = (1ull << 47) - kPageBytes;
constexpr std::chrono::milliseconds kTracerPatience{50};
constexpr timespec kTracerPause{0, 100'000};
// On idle cores threads stop within it. Those that do not are on their way, which is all that is needed.
constexpr std::chrono::microseconds kHoldTimeout{60};
constexpr int kOutOfMemoryRetries = 200;  // with a pause of 5 ms each
constexpr timespec kOutOfMemoryPause{0, 5'000'000};

// Between reading events and having them booked. An agent killed in between leaves the mark behind.
class Booking {
 public:
  explicit Booking(ChangeRecord* record) : record_(record) {
    if (record_ != nullptr) record_->booking = 1;
  }
  ~Booking() {
    if (record_ != nullptr) record_->booking = 0;
  }
  Booking(const Booking&) = delete;
  Booking& operator=(const Booking&) = delete;

 private:
  ChangeRecord* const record_;
};

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

// The program has no use any more for what the image holds for these addresses: they read as zero from now on
// (or are unmapped), and their pages never come back.
void ProcessMemory::forget(std::span<const AddressRange> origins) {
  for (const auto& r : origins) {
    for (const auto& run : layout_.runs) {
      if (run.process != process_) continue;
      const uint64_t b = std::max(r.begin, run.address);
      const uint64_t e = std::min(r.end, run.address + run.count * kPageBytes);
      for (uint64_t a = b; a < e; a += kPageBytes)
        set_state(run.first_page + (a - run.address) / kPageBytes, PageState::resident);
    }
  }
}

DrainedEvents ProcessMemory::drain(std::span<const AddressRange> own_discards) {
  DrainedEvents out;
  std::vector<uffd_msg> calls;
  const std::unique_lock lock(mutex_);
  if (!uffd_) return out;
  for (;;) {
    // Faults come first, so as many reads as there are faults bring nothing else (but when a signal takes
    // one back in this very moment). Without the number, nothing is read while a call is under way.
    const auto faults = uffd_.pending_faults();
    const bool changing = uffd_.changing();
    const size_t most = std::min(faults.value_or(changing ? 0 : kEventsPerRead), kEventsPerRead);
    const size_t n = most > 0 ? read_calls(most, own_discards, out, calls) : 0;
    if (n == 0 && !changing && faults.value_or(0) == 0) return out;
    if (calls.empty() && !changing) continue;
    if (!alone()) {
      book_set(own_discards, out, calls);
    } else {
      const Booking booking(record_);
      if (calls.empty() && read_calls(1, own_discards, out, calls) == 0) sched_yield();
      for (const auto& m : calls) book(std::span(&m, 1), out.children);
    }
    calls.clear();
  }
}

// Nobody else can make a call before the event of the one under way has been read.
bool ProcessMemory::alone() const {
  if (pid_ == 0) return true;
  try {
    return threads_of(pid_).size() <= 1;
  } catch (const Error&) {
    return true;  // it is gone
  }
}

// Sorts up to `most` messages into faults and calls; returns their number.
size_t ProcessMemory::read_calls(size_t most, std::span<const AddressRange> own_discards, DrainedEvents& out,
                                 std::vector<uffd_msg>& calls) {
  uffd_msg messages[kEventsPerRead];
  const size_t n = uffd_.read_events(std::span(messages).first(most));
  for (size_t i = 0; i < n; ++i) {
    const auto& m = messages[i];
    if (m.event == UFFD_EVENT_PAGEFAULT)
      out.faults.push_back(m.arg.pagefault.address);
    else if (m.event != UFFD_EVENT_REMOVE ||
             std::none_of(own_discards.begin(), own_discards.end(), [&](const AddressRange& own) {
               return own.begin <= m.arg.remove.start && m.arg.remove.end <= own.end;
             }))
      calls.push_back(m);
  }
  return n;
}

// Reads and books all calls under way. A thread whose event was read goes no further than the end of its
// call. The tracer before us (an eviction, the set before this one) may still be letting its threads go; a
// debugger stays, and is lived with: the calls are then booked in the order read.
void ProcessMemory::book_set(std::span<const AddressRange> own_discards, DrainedEvents& out,
                             std::vector<uffd_msg>& calls) {
  auto deadline = std::chrono::steady_clock::now() + kTracerPatience;
  for (bool done = false, last = false;;) {
    run_as_tracer([&] {
      const auto held = hold_threads(pid_, kHoldTimeout);
      if (!held && !last) return;
      const Booking booking(record_);
      while (read_calls(kEventsPerRead, own_discards, out, calls) > 0 || uffd_.changing()) sched_yield();
      done = true;
      if (held && held->complete()) return book(calls, out.children);
      for (const auto& m : calls) book(std::span(&m, 1), out.children);
    });
    if (done) return;
    nanosleep(&kTracerPause, nullptr);
    const auto now = std::chrono::steady_clock::now();
    if (traced_by_us(pid_)) deadline = now + kTracerPatience;
    last = now > deadline;
  }
}

// Books a set of calls of which none had returned when the last one began.
void ProcessMemory::book(std::span<const uffd_msg> calls, std::vector<std::shared_ptr<ProcessMemory>>& born) {
  if (!calls.empty()) fault_point("restore.booking");
  std::vector<MappingChange> changes;
  for (const auto& m : calls) {
    const auto& r = m.arg.remap;
    if (m.event == UFFD_EVENT_REMAP)
      changes.push_back({MappingChange::Kind::move, r.from, r.from + r.len, r.to});
    else if (m.event == UFFD_EVENT_UNMAP)
      changes.push_back({MappingChange::Kind::unmap, m.arg.remove.start, m.arg.remove.end, 0});
    else if (m.event == UFFD_EVENT_REMOVE)
      changes.push_back({MappingChange::Kind::discard, m.arg.remove.start, m.arg.remove.end, 0});
  }
  // What was missing when the set began was missing when the child was made: nothing is placed meanwhile.
  for (const auto& m : calls) {
    if (m.event != UFFD_EVENT_FORK) continue;
    born.push_back(fork(Uffd(UniqueFd(static_cast<int>(m.arg.fork.ufd)))));
    const auto child = born.back();
    if (!changes.empty()) child->catch_up(changes, born);
  }
  const Applied applied = apply_together(segments_, changes);
  forget(applied.unwanted);
  note_moves(applied.moved);
}

void ProcessMemory::note_moves(std::span<const Segment> moved) {
  if (record_ == nullptr) return;
  for (const auto& s : moved) {
    if (!any_missing(s.origin, s.end - s.begin)) continue;
    const uint32_t n = record_->count;
    if (n < ChangeRecord::kMaxMoves) record_->moves[n] = {s.origin, s.begin, s.end - s.begin};
    record_->count = std::min(n, ChangeRecord::kMaxMoves) + 1;
  }
}

bool ProcessMemory::any_missing(uint64_t origin, uint64_t bytes) const {
  for (const auto& run : layout_.runs) {
    if (run.process != process_) continue;
    const uint64_t b = std::max(origin, run.address);
    const uint64_t e = std::min(origin + bytes, run.address + run.count * kPageBytes);
    for (uint64_t a = b; a < e; a += kPageBytes) {
      const PageState s = state(run.first_page + (a - run.address) / kPageBytes);
      if (s == PageState::evicted || s == PageState::evicting) return true;
    }
  }
  return false;
}

void ProcessMemory::take_up_record() {
  if (record_ == nullptr) return;
  const uint32_t count = record_->count;
  const bool unknown = record_->booking != 0 || count > ChangeRecord::kMaxMoves;
  if (unknown && any_missing(0, kMaxUserAddress))
    throw Error(Code::lost, "the agent was killed while the program changed its mappings",
                "pid " + std::to_string(pid_), "start a new instance");
  record_->booking = 0;
  for (uint32_t i = 0; i < std::min(count, ChangeRecord::kMaxMoves); ++i) {
    const MovedPages& m = record_->moves[i];
    segments_.put(m.origin, m.address, m.bytes);
  }
}

uint64_t ProcessMemory::address_of(uint64_t page) const {
  const PageRun& run = layout_.run_of(page);
  const auto where = segments_.place_of(run.address + (page - run.first_page) * kPageBytes);
  return where.bytes == 0 ? 0 : where.address;
}

// The child runs already. It has one thread, so it gets no further than one call of its own between two of
// our looks, and whatever that call speaks of was there when it was born.
void ProcessMemory::catch_up(std::span<const MappingChange> changes,
                             std::vector<std::shared_ptr<ProcessMemory>>& grandchildren) {
  std::vector<uffd_msg> own;
  DrainedEvents events;
  const auto registered = [&](uint64_t address) {
    for (;;) {
      const UffdResult result = uffd_.look(address);
      for (const auto& m : own) {
        const bool moved = m.event == UFFD_EVENT_REMAP && address - m.arg.remap.from < m.arg.remap.len;
        const bool unmapped =
            m.event == UFFD_EVENT_UNMAP && address >= m.arg.remove.start && address < m.arg.remove.end;
        if (moved || unmapped) return true;
      }
      // As in place_once: the mapping is looked for before it is looked whether mappings change.
      if (result != UffdResult::again && !(result == UffdResult::unmapped && uffd_.changing()))
        return result == UffdResult::ok;
      if (read_calls(1, {}, events, own) == 0) sched_yield();
    }
  };
  forget(apply_together(segments_, inherited(segments_, changes, registered)).unwanted);
  for (const auto& m : own) book(std::span(&m, 1), grandchildren);
  for (uint64_t address : events.faults) wake(address);  // it faults once more, when it is served
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
      if (uffd_.changing()) return Code::busy;
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
// through a pass. The kernel is asked of each whether it is still registered, until a pass finds none.
void ProcessMemory::unregister_all() {
  const std::unique_lock lock(mutex_);
  if (!uffd_ || pid_ == 0 || gone()) return;  // a forked child's only descriptor is ours: closing it does all
  try {
    for (int pass = 0; pass < kMaxUnregisterPasses; ++pass) {
      const bool some = unregister_registered();
      if (!settle_events() && !some) return;
    }
  } catch (const Error&) {
    gone_ = true;
  }
}

bool ProcessMemory::unregister_registered() {
  bool some = false;
  uint64_t last_end = 0;
  const auto vmas = read_maps(pid_);
  for (size_t i = 0; i < vmas.size(); ++i) {
    const Vma& v = vmas[i];
    // It may grow while we look, a stack downwards: the gap on that side is given back with it, so that no
    // mapping is ever cut in two.
    const uint64_t next_begin = i + 1 < vmas.size() ? std::max(vmas[i + 1].begin, v.end) : v.end;
    const AddressRange range{v.kind == VmaKind::stack ? last_end : v.begin,
                             v.kind == VmaKind::stack || next_begin > kMaxUserAddress ? v.end : next_begin};
    last_end = v.end;
    const UffdResult result = uffd_.look(v.begin);
    if (result == UffdResult::gone) throw Error(Code::process_gone, "its memory is gone");
    if (result != UffdResult::ok && result != UffdResult::again) continue;
    some = true;
    // Something that cannot be registered may have come to lie in the gap.
    if (result == UffdResult::ok && uffd_.unregister(range.begin, range.end) != 0)
      (void)uffd_.unregister(v.begin, v.end);
  }
  return some;
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
    if (n == 0 && !uffd_.changing()) return moved;
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
