// What the kernel tells of a process's mappings: read, logged, applied; and what an agent before us left of
// that.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <mutex>
#include <optional>
#include <utility>

#include "common/fault_point.h"
#include "procfs/proc.h"
#include "serving/process_memory.h"
#include "tracing/tracee.h"

namespace medes {
namespace {

constexpr std::chrono::milliseconds kTracerPatience{50};
constexpr std::chrono::seconds kLookPatience{5};
constexpr timespec kTracerPause{0, 100'000};
// On idle cores threads stop within it. Those that do not are on their way, which is all that is needed.
constexpr std::chrono::microseconds kHoldTimeout{60};

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
void release_holders(std::span<const Holder> before,
                     std::span<const std::shared_ptr<ProcessMemory>> children) {
  for (const auto& child : children)
    for (const auto& holder : before) keeper::release(holder, child->inode());
}

}  // namespace

DrainedEvents ProcessMemory::drain(std::span<const AddressRange> own_discards) {
  DrainedEvents out;
  std::vector<uffd_msg> calls;
  const std::unique_lock lock(mutex_);
  if (!uffd_ || reclaiming_) return out;
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
      read_and_apply_set(own_discards, out, calls);
    } else {
      if (calls.empty() && read_calls(1, own_discards, out, calls) == 0) sched_yield();
      apply_and_commit(calls, ChangeRecord::in_order, out.children);
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
    DrainedEvents events = drain();
    for (auto& child : events.children) born.push_back(std::move(child));
    for (uint64_t address : events.faults) wake(address);  // it faults once more, when it is served
    look();
  } while (uffd_ && uffd_.changing());
}

// Nobody else can make a call before the event of the one under way has been read.
bool ProcessMemory::alone() const {
  if (is_forked_child()) return true;
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

// Reads, applies and commits all calls under way. A thread whose event was read goes no further than the end
// of its call. The tracer before us (an eviction, the set before this one) may still be letting its threads
// go; a debugger stays, and is lived with: the calls are then applied in the order read.
void ProcessMemory::read_and_apply_set(std::span<const AddressRange> own_discards, DrainedEvents& out,
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
      apply_and_commit(calls, apart ? ChangeRecord::together : ChangeRecord::in_order, out.children);
    });
    if (done) return;
    nanosleep(&kTracerPause, nullptr);
    const auto now = std::chrono::steady_clock::now();
    if (traced_by_us(pid_)) deadline = now + kTracerPatience;
    last = now > deadline;
  }
}

// Applies what was read and commits it. A kill anywhere in here leaves the log, and it is all done again:
// children that have their file by then are left as they are, forgetting a page twice is forgetting it once,
// and moves count from the last store on.
void ProcessMemory::apply_and_commit(std::span<const uffd_msg> calls, ChangeRecord::Order order,
                                     std::vector<std::shared_ptr<ProcessMemory>>& born) {
  if (calls.empty()) return;
  fault_point("restore.read");
  log_.decide(order);
  fault_point("restore.applying");
  bool moved = false;
  if (order == ChangeRecord::together)
    moved = apply_set(calls, born);
  else
    for (const auto& m : calls) moved |= apply_set(std::span(&m, 1), born);
  fault_point("restore.applied");
  log_.commit(moved ? std::optional(moves_to_note()) : std::nullopt);
  fault_point("restore.committed");
}

// What was missing when the set began was missing when the child was made: nothing is placed meanwhile.
// `changes`: those of the set.
void ProcessMemory::on_fork(Uffd child_uffd, std::span<const MappingChange> changes,
                            std::vector<std::shared_ptr<ProcessMemory>>& born) {
  born.push_back(fork(std::move(child_uffd)));
  fault_point("restore.child_kept");
  const auto child = born.back();
  if (!child->log_.untouched())
    child->replay_log(born);  // an agent before us had come further
  else if (!changes.empty())
    child->apply_inherited(changes, born);
}

// Applies a set of calls of which none had returned when the last one began. True when something moved.
bool ProcessMemory::apply_set(std::span<const uffd_msg> calls,
                              std::vector<std::shared_ptr<ProcessMemory>>& born) {
  const std::vector<MappingChange> changes = changes_of(calls);
  for (const auto& m : calls)
    if (m.event == UFFD_EVENT_FORK) on_fork(Uffd(UniqueFd(static_cast<int>(m.arg.fork.ufd))), changes, born);
  const Applied applied = apply_together(segments_, changes);
  forget(applied.unwanted);
  return !applied.moved.empty();
}

void ProcessMemory::keep_record(ChangeRecord& record, uint32_t& stop_note, const std::string& sandbox_path) {
  log_.keep_in(record);
  stop_note_ = &stop_note;
  sandbox_path_ = sandbox_path;
}

void ProcessMemory::recover_moves() {
  if (const auto moves = log_.moves()) {
    for (const auto& m : *moves) segments_.put(m.origin, m.address, m.bytes);
    return;
  }
  if (any_missing(0, kMaxUserAddress))
    throw Error(Code::lost, "more pieces of missing memory were moved than are kept over a kill of the agent",
                "pid " + std::to_string(pid_), "start a new instance");
}

void ProcessMemory::recover(std::vector<std::shared_ptr<ProcessMemory>>& born) {
  add_mappings_of_layout();
  recover_moves();
  replay_log(born);
}

void ProcessMemory::replay_log(std::vector<std::shared_ptr<ProcessMemory>>& born) {
  std::vector<Holder> before;
  auto calls = take_left_calls(before);
  if (!calls && any_missing(0, kMaxUserAddress))
    throw Error(Code::lost, "the agent was killed while the program changed its mappings",
                "pid " + std::to_string(pid_), "start a new instance");
  if (!calls || calls->empty()) return log_.commit(std::nullopt);
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
  apply_and_commit(*calls, order == ChangeRecord::open ? ChangeRecord::in_order : order, born);
  release_holders(before, std::span(born).subspan(known));
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

// What agents before us read and did not commit. Messages of forks name descriptors of theirs, which their
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

// The child runs already. It has one thread, so it gets no further than one call of its own between two of
// our looks, and whatever that call speaks of was there when it was born.
void ProcessMemory::apply_inherited(std::span<const MappingChange> changes,
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
  for (const auto& m : own) moved |= apply_set(std::span(&m, 1), grandchildren);
  log_.commit(moved ? std::optional(moves_to_note()) : std::nullopt);
  release_holders(before, std::span(grandchildren).subspan(known));
  for (uint64_t address : events.faults) wake(address);  // it faults once more, when it is served
}

}  // namespace medes
