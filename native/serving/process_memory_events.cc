#include "live/process_memory.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <mutex>
#include <optional>
#include <utility>

#include "common/fault_point.h"
#include "live/tracee.h"
#include "memory/proc.h"

namespace medes {
namespace {

constexpr size_t kEventsPerRead = 64;
constexpr size_t kPagesPerLook = 256;
constexpr int kMaxUnregisterPasses = 1000;
constexpr uint64_t kMaxUserAddress = (1ull << 47) - kPageBytes;
constexpr std::chrono::milliseconds kTracerPatience{50};
constexpr std::chrono::seconds kLookPatience{5};
constexpr timespec kTracerPause{0, 100'000};
// On idle cores threads stop within it. Those that do not are on their way, which is all that is needed.
constexpr std::chrono::microseconds kHoldTimeout{60};
// The kernel has just tried to make room, and may be still at it. Who wants the page asks again later.
constexpr int kOutOfMemoryRetries = 4;
constexpr timespec kOutOfMemoryPause{0, 1'000'000};

// What a call says of mappings; nothing of a fork.
std::optional<MappingChange> change_of(const uffd_msg& m) {
  switch (m.event) {
    case UFFD_EVENT_REMAP:
      return MappingChange{MappingChange::Kind::move, m.arg.remap.from, m.arg.remap.from + m.arg.remap.len,
                           m.arg.remap.to};
    case UFFD_EVENT_UNMAP:
      return MappingChange{MappingChange::Kind::unmap, m.arg.remove.start, m.arg.remove.end, 0};
    case UFFD_EVENT_REMOVE:
      return MappingChange{MappingChange::Kind::discard, m.arg.remove.start, m.arg.remove.end, 0};
    default: return std::nullopt;
  }
}

std::vector<MappingChange> changes_of(std::span<const uffd_msg> calls) {
  std::vector<MappingChange> changes;
  for (const auto& m : calls)
    if (const auto change = change_of(m)) changes.push_back(*change);
  return changes;
}

// The children are ours now, and need nobody before us.
void give_up(std::span<const Holder> before, std::span<const std::shared_ptr<ProcessMemory>> children) {
  for (const auto& child : children)
    for (const auto& holder : before) keeper::release(holder, child->inode());
}

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
    if (n == 0 && !changing && faults.value_or(0) == 0) break;
    if (calls.empty() && !changing) continue;
    if (!alone()) {
      book_set(own_discards, out, calls);
    } else {
      if (calls.empty() && read_calls(1, own_discards, out, calls) == 0) sched_yield();
      book(calls, ChangeRecord::in_order, out.children);
    }
    calls.clear();
  }
  return out;
}

// A call that changes mappings says so before it does anything, and until its event is read, which is by us.
void ProcessMemory::look_undisturbed(std::vector<std::shared_ptr<ProcessMemory>>& born,
                                     const std::function<void()>& look) {
  const auto deadline = std::chrono::steady_clock::now() + kLookPatience;
  do {
    if (std::chrono::steady_clock::now() > deadline)
      throw Error(Code::busy, "it changes its mappings without a pause", "pid " + std::to_string(pid_));
    for (auto& child : drain().children) born.push_back(std::move(child));
    look();
  } while (uffd_ && uffd_.changing());
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
  const auto room = std::span(messages).first(most);
  const auto is_ours = [&](const uffd_msg& m) {
    return m.event == UFFD_EVENT_REMOVE &&
           std::any_of(own_discards.begin(), own_discards.end(), [&](const AddressRange& own) {
             return own.begin <= m.arg.remove.start && m.arg.remove.end <= own.end;
           });
  };
  size_t kept = 0;
  const size_t n = own_discards.empty()
                       ? kept = log_.read(uffd_, room)
                       : log_.read_some(uffd_, room, kept, [&](const uffd_msg& m) { return !is_ours(m); });
  for (const auto& m : room.first(kept))
    if (m.event == UFFD_EVENT_PAGEFAULT)
      out.faults.push_back(m.arg.pagefault.address);
    else
      calls.push_back(m);
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
      std::optional<StopOnDeath> stop_on_death;
      if (held) stop_on_death.emplace(pid_, *held, *stop_note_);
      // Often only one of them is in a call: its events come in order, and that is known beforehand.
      if (held && held->complete() && held->threads().size() - held->stopped().size() <= 1)
        log_.decide(ChangeRecord::in_order);
      while (read_calls(kEventsPerRead, own_discards, out, calls) > 0 || uffd_.changing()) sched_yield();
      done = true;
      const bool apart = held && held->complete();
      book(calls, apart ? ChangeRecord::together : ChangeRecord::in_order, out.children);
    });
    if (done) return;
    nanosleep(&kTracerPause, nullptr);
    const auto now = std::chrono::steady_clock::now();
    if (traced_by_us(pid_)) deadline = now + kTracerPatience;
    last = now > deadline;
  }
}

// Books what was read. A kill anywhere in here leaves the log, and it is all done again: children that have
// their file by then are left as they are, forgetting a page twice is forgetting it once, and moves count
// from the last store on.
void ProcessMemory::book(std::span<const uffd_msg> calls, ChangeRecord::Order order,
                         std::vector<std::shared_ptr<ProcessMemory>>& born) {
  if (calls.empty()) return;
  fault_point("restore.read");
  log_.decide(order);
  fault_point("restore.booking");
  bool moved = false;
  if (order == ChangeRecord::together)
    moved = apply(calls, born);
  else
    for (const auto& m : calls) moved |= apply(std::span(&m, 1), born);
  fault_point("restore.applied");
  log_.book(moved ? std::optional(moved_pages()) : std::nullopt);
  fault_point("restore.booked");
}

// Applies a set of calls of which none had returned when the last one began. True when something moved.
bool ProcessMemory::apply(std::span<const uffd_msg> calls,
                          std::vector<std::shared_ptr<ProcessMemory>>& born) {
  const std::vector<MappingChange> changes = changes_of(calls);
  // What was missing when the set began was missing when the child was made: nothing is placed meanwhile.
  for (const auto& m : calls) {
    if (m.event != UFFD_EVENT_FORK) continue;
    born.push_back(fork(Uffd(UniqueFd(static_cast<int>(m.arg.fork.ufd)))));
    fault_point("restore.child_kept");
    const auto child = born.back();
    if (!child->log_.untouched())
      child->finish_booking(born);  // an agent before us had come further
    else if (!changes.empty())
      child->catch_up(changes, born);
  }
  const Applied applied = apply_together(segments_, changes);
  forget(applied.unwanted);
  return !applied.moved.empty();
}

std::vector<MovedPages> ProcessMemory::moved_pages() const {
  std::vector<MovedPages> out;
  for (const auto& s : segments_.all())
    if (s.begin != s.origin && any_missing(s.origin, s.end - s.begin))
      out.push_back({s.origin, s.begin, s.end - s.begin});
  return out;
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

void ProcessMemory::keep_record(ChangeRecord& record, uint32_t& stop_note, const std::string& sandbox_path) {
  log_.keep_in(record);
  stop_note_ = &stop_note;
  sandbox_path_ = sandbox_path;
}

void ProcessMemory::add_mappings_of_layout() {
  for (const auto& v : layout_.processes[process_].vmas)
    if (is_anonymous(v)) segments_.add(v.begin, v.end, v.begin);
}

void ProcessMemory::take_up_moves() {
  if (const auto moves = log_.moves()) {
    for (const auto& m : *moves) segments_.put(m.origin, m.address, m.bytes);
    return;
  }
  if (any_missing(0, kMaxUserAddress))
    throw Error(Code::lost, "more pieces of missing memory were moved than are kept over a kill of the agent",
                "pid " + std::to_string(pid_), "start a new instance");
}

void ProcessMemory::take_up_record(std::vector<std::shared_ptr<ProcessMemory>>& born) {
  add_mappings_of_layout();
  take_up_moves();
  finish_booking(born);
}

void ProcessMemory::finish_booking(std::vector<std::shared_ptr<ProcessMemory>>& born) {
  std::vector<Holder> before;
  auto calls = take_left_calls(before);
  if (!calls && any_missing(0, kMaxUserAddress))
    throw Error(Code::lost, "the agent was killed while the program changed its mappings",
                "pid " + std::to_string(pid_), "start a new instance");
  if (!calls || calls->empty()) return log_.book(std::nullopt);
  auto order = log_.left_order();
  if (order == ChangeRecord::open && !alone()) {
    read_rest(*calls);
    // Where all of them were stopped by the kill, none has begun a second call.
    if (std::atomic_ref(*stop_note_).load(std::memory_order_acquire) != kStopped &&
        !independent(changes_of(*calls)))
      throw Error(Code::lost, "the agent was killed while threads changed the same mappings",
                  "pid " + std::to_string(pid_), "start a new instance");
    order = ChangeRecord::together;
  }
  const size_t known = born.size();
  book(*calls, order == ChangeRecord::open ? ChangeRecord::in_order : order, born);
  give_up(before, std::span(born).subspan(known));
}

// The rest of a set of which the agent before us had read only a part; and more, where threads whose event
// was read have gone on since.
void ProcessMemory::read_rest(std::vector<uffd_msg>& calls) {
  run_as_tracer([&] {
    const auto held = hold_threads(pid_, kHoldTimeout);
    uffd_msg messages[kEventsPerRead];
    for (size_t n = 0; (n = log_.read(uffd_, messages)) > 0 || uffd_.changing(); sched_yield())
      std::copy_if(messages, messages + n, std::back_inserter(calls),
                   [](const uffd_msg& m) { return m.event != UFFD_EVENT_PAGEFAULT; });
  });
}

// What agents before us read and did not book. Messages of forks name descriptors of theirs, which their
// keepers have: they get our numbers for them. `holders` gets where they are held meanwhile. A child that is
// gone needs none.
std::optional<std::vector<uffd_msg>> ProcessMemory::take_left_calls(std::vector<Holder>& holders) {
  const auto left = log_.take_left();
  if (!left) return std::nullopt;
  std::vector<uffd_msg> calls;
  for (const auto& l : *left) {
    uffd_msg m = l.message;
    Holder holder = l.holder;
    if (m.event == UFFD_EVENT_FORK) {
      holder.fd = static_cast<int32_t>(m.arg.fork.ufd);
      UniqueFd taken = keeper::take(holder);
      if (!taken && !keeper::alive(holder))
        throw Error(Code::lost, "a child was forked, and the agent and its keeper were killed",
                    "pid " + std::to_string(pid_), "start a new instance");
      if (!taken) continue;
      holders.push_back(holder);
      m.arg.fork.ufd = static_cast<uint32_t>(taken.release());
    }
    calls.push_back(m);
  }
  return calls;
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
  std::vector<Holder> before;
  std::vector<uffd_msg> own = take_left_calls(before).value_or(std::vector<uffd_msg>());
  const size_t known = grandchildren.size();
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
  const Applied applied = apply_together(segments_, inherited(segments_, changes, registered));
  forget(applied.unwanted);
  bool moved = !applied.moved.empty();
  for (const auto& m : own) moved |= apply(std::span(&m, 1), grandchildren);
  log_.book(moved ? std::optional(moved_pages()) : std::nullopt);
  give_up(before, std::span(grandchildren).subspan(known));
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
      case UffdResult::no_memory:
        if (++failures > kOutOfMemoryRetries) return Code::limit_exceeded;
        nanosleep(&kOutOfMemoryPause, nullptr);
        continue;
      case UffdResult::failed: return Code::io;
    }
  }
}

// How many pages from `address` on may be placed: up to the first guard. No event tells of
// MADV_GUARD_INSTALL, and the kernel would put a page in a guard's place. Of a forked child nobody knows the
// process.
uint64_t ProcessMemory::unguarded(uint64_t address, uint64_t count) {
  if (pid_ == 0) return count;
  try {
    std::call_once(look_at_pages_, [&] { pagemap_ = open_pagemap(pid_); });
    PagemapEntry entries[kPagesPerLook];
    for (uint64_t n = 0; n < count;) {
      const size_t got = read_pagemap(pagemap_.get(), pid_, address + n * kPageBytes,
                                      std::span(entries).first(std::min<uint64_t>(count - n, kPagesPerLook)));
      for (size_t i = 0; i < got; ++i)
        if (entries[i].guard()) return n + i;
      n += got;
    }
  } catch (const Error&) {  // it is gone, as placing finds out, or we have no descriptor left to look with
  }
  return count;
}

// Places as much as lies together and is still wanted, from `page` on; `done` gets how many pages are
// settled (in place, or not wanted any more). busy: events must be read first.
Code ProcessMemory::place_once(uint64_t page, uint64_t count, const std::byte* bytes, uint64_t& done) {
  const std::shared_lock lock(mutex_);
  done = 0;
  while (done < count && state(page + done) != PageState::evicted) ++done;
  if (done > 0) return Code::ok;
  if (!uffd_) return Code::process_gone;
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
  together = unguarded(where.address, together);
  if (together == 0) {  // what was there is gone by the program's own wish
    set_state(page, PageState::resident);
    uffd_.wake(where.address, 1);
    done = 1;
    return Code::ok;
  }
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
    case UffdResult::no_memory: return Code::limit_exceeded;
    case UffdResult::failed: return Code::io;
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
  close_locked();
}

void ProcessMemory::close_locked() {
  if (file_) file_->set_done();
  told_when_gone_ = {};
  uffd_.close();
  pagemap_.reset();
  if (file_) file_->unlink();
}

bool ProcessMemory::look_whether_gone() {
  const std::shared_lock lock(mutex_);
  if (uffd_ && !gone() && uffd_.memory_gone()) gone_ = true;
  return gone();
}

void ProcessMemory::put_aside() {
  const std::unique_lock lock(mutex_);
  if (!uffd_) return;
  // A child that has all its pages needs nobody; the kernel alone serves it from then on.
  if (gone() || (pid_ == 0 && missing() == 0)) return close_locked();
  keeper::leave_open(uffd_.release(), file_, std::move(told_when_gone_));
}

std::shared_ptr<ProcessMemory> ProcessMemory::fork(Uffd uffd) const {
  // Whatever fails from here on, the descriptor is left open and not closed (~ProcessMemory).
  auto child = std::make_shared<ProcessMemory>(0, process_, layout_, std::move(uffd), states_);
  child->count_missing();
  // `evicting` is only met while an interrupted eviction is cleared up: the page may be there or not, and
  // placing finds out.
  std::vector<std::byte> states(states_.size());
  for (uint64_t i = first_page_; i < end_page_; ++i) {
    const PageState s = state(i);
    states[i] = static_cast<std::byte>(s == PageState::evicting ? PageState::evicted : s);
  }
  for (const uint64_t page : unwanted_by_child()) states[page] = static_cast<std::byte>(PageState::resident);
  child->own_states_ = std::vector<std::atomic<uint8_t>>(states.size());
  for (size_t i = 0; i < states.size(); ++i) child->own_states_[i] = static_cast<uint8_t>(states[i]);
  child->states_ = child->own_states_;
  child->segments_ = segments_;
  child->count_missing();
  const auto file = keep_child(child->uffd_, states);
  if (!file) return child;
  if (file->record().sets() > 0) {
    child->segments_ = {};
    child->take_up_file(file, sandbox_path_);
    return child;
  }
  child->states_ = file->page_states();
  child->keep_in(file, sandbox_path_);
  child->count_missing();
  return child;
}

// Image pages that a child does not get: MADV_WIPEONFORK gives it zeros there, and a guard region stays one.
// The thread that forks waits for us meanwhile. Of a process that is a forked child itself nothing is known
// but its memory; what it was not given it has not either.
std::vector<uint64_t> ProcessMemory::unwanted_by_child() const {
  std::vector<uint64_t> out;
  if (pid_ == 0) return out;
  const auto add = [&](uint64_t begin, uint64_t end) {
    for (uint64_t a = begin; a < end; a += kPageBytes)
      if (const auto origin = segments_.origin_of(a))
        if (const uint64_t page = layout_.find(process_, *origin); page != ImageLayout::kNoPage)
          out.push_back(page);
  };
  try {
    for (const AddressRange& r : ranges_with_flag(pid_, "wf")) add(r.begin, r.end);
    const Pagemap pagemap(pid_);
    for (const auto& s : segments_.all()) {
      std::vector<PageSpan> guards;
      pagemap.guard_pages(s.begin, s.end, guards);
      for (const auto& g : guards) add(g.address, g.address + g.count * kPageBytes);
    }
  } catch (const Error&) {  // it is being killed, and the child with it
  }
  return out;
}

void ProcessMemory::keep_in(std::shared_ptr<ChildFile> file, const std::string& sandbox_path) {
  file_ = std::move(file);
  told_when_gone_ = keeper::ToldWhenGone(fd(), file_->fd());
  log_.keep_in(file_->record());
  sandbox_path_ = sandbox_path;
}

// From here on our keeper holds the child's userfaultfd, and no other. At every instant the file names one
// that does: of two (an agent was killed in here) one may have given it up.
void ProcessMemory::hold(ChildFile& file, const Holder& here) {
  for (Holder& h : file.holders())
    if (h.pid != 0 && !keeper::take(h, file.inode())) h = Holder{};
  if (Holder& second = file.holders()[1]; file.holders()[0].pid != 0 && second.pid != 0) {
    keeper::release(second, file.inode());
    second = Holder{};
  }
  file.add_holder(here);
  for (const Holder& h : file.holders())
    if (h.pid != 0 && (h.pid != here.pid || h.fd != here.fd)) keeper::release(h, file.inode());
  file.keep_only(here);
}

// Nothing where the store has no room: the child then depends on us alone, as long as it misses pages.
std::shared_ptr<ChildFile> ProcessMemory::keep_child(const Uffd& uffd,
                                                     std::span<const std::byte> states) const {
  if (sandbox_path_.empty()) return nullptr;
  const Holder here = keeper::holder_of(uffd.fd());
  try {
    return ChildFile::create(sandbox_path_, process_, uffd.inode(), here, states, moved_pages());
  } catch (const Error& e) {
    if (e.code != Code::already_exists) return nullptr;
  }
  // An agent that was killed while it booked the fork had come so far.
  const auto file = ChildFile::open(ChildFile::path_of(sandbox_path_, uffd.inode()));
  hold(*file, here);
  return file;
}

std::shared_ptr<ProcessMemory> ProcessMemory::of_child(const ImageLayout& layout,
                                                       std::shared_ptr<ChildFile> file, Uffd uffd,
                                                       const std::string& sandbox_path) {
  if (file->page_states().size() != layout.page_count || file->process() >= layout.processes.size())
    throw Error(Code::corrupt, "a child file is of another image", sandbox_path);
  auto child =
      std::make_shared<ProcessMemory>(0, file->process(), layout, std::move(uffd), file->page_states());
  child->take_up_file(std::move(file), sandbox_path);
  return child;
}

void ProcessMemory::take_up_file(std::shared_ptr<ChildFile> file, const std::string& sandbox_path) {
  states_ = file->page_states();
  count_missing();
  hold(*file, keeper::holder_of(fd()));
  keep_in(std::move(file), sandbox_path);
  add_mappings_of_layout();
  take_up_moves();
}

}  // namespace medes
