#include "tracing/interrupted_calls.h"

#include <linux/io_uring.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <string>

#include "common/error.h"
#include "procfs/proc.h"
#include "tracing/call_arguments.h"
#include "tracing/process_bytes.h"
#include "tracing/ptrace_calls.h"
#include "tracing/system_calls.h"

namespace medes {
namespace {

// What the kernel calls a result that means: make the call again, unless a handler runs
// (include/linux/errno.h).
constexpr uint64_t kRestartNoHand = static_cast<uint64_t>(-514);
// The same by way of restart_syscall, which knows what is left of a timeout.
constexpr uint64_t kRestartBlock = static_cast<uint64_t>(-516);

constexpr int kOffsetTries = 3;

enum class Timeout : uint8_t { none, milliseconds, timespec, timeval, ring };

// A call that a stop ends with EINTR, having done nothing; and where it says how long it waits.
struct Call {
  Timeout timeout = Timeout::none;
  int index = 0;  // of the argument
};

// With a timeout of its own.
std::optional<Call> timed_call(long number) {
  switch (number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait: return Call{Timeout::milliseconds, 3};
    case kSysEpollPwait2:
    case SYS_semtimedop: return Call{Timeout::timespec, 3};
    case SYS_rt_sigtimedwait:
    case SYS_ppoll: return Call{Timeout::timespec, 2};  // ppoll when the kernel cannot write the rest back
    case SYS_pselect6:
    case SYS_io_getevents:
    case SYS_io_pgetevents: return Call{Timeout::timespec, 4};
    case SYS_select: return Call{Timeout::timeval, 4};
    case SYS_io_uring_enter: return Call{Timeout::ring, 4};
    default: return std::nullopt;
  }
}

// Sockets with SO_RCVTIMEO or SO_SNDTIMEO, by whatever call, and what a file system or device may interrupt.
std::optional<Call> call_of(long number) {
  switch (number) {
    case SYS_read:
    case SYS_write:
    case SYS_readv:
    case SYS_writev:
    case SYS_preadv2:
    case SYS_pwritev2:
    case SYS_accept:
    case SYS_accept4:
    case SYS_connect:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_sendfile:
    case SYS_splice:
    case SYS_semop: return Call{};
    default: return timed_call(number);
  }
}

std::string task_file(pid_t pid, pid_t tid, const char* name) {
  return read_proc_file("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/" + name, pid,
                        65536);
}

// Of this thread, which has just been put on a processor: a time not long ago, by that one's clock of tasks.
std::optional<int64_t> own_exec_start_ns() {
  try {
    return parse_sched(read_proc_file("/proc/thread-self/sched", 0, 65536)).exec_start_ns;
  } catch (const Error&) {
    return std::nullopt;
  }
}

// How many of a time's lesser part make a second.
int64_t units_of(Timeout timeout) { return timeout == Timeout::timeval ? 1'000'000 : 1'000'000'000; }

struct RingArgument {
  uint64_t mask;
  uint32_t mask_bytes, wait_us;
  uint64_t time;
};
static_assert(sizeof(RingArgument) == 24 &&
              sizeof(RingArgument) + sizeof(timespec) <= InjectionArea::kSlotBytes);
constexpr uint64_t kRingExtArg = 1 << 3, kRingAbsolute = 1 << 5, kRingRegistered = 1 << 6;

}  // namespace

void InterruptedCalls::look(pid_t pid, pid_t tid) {
  try {
    const auto call = parse_syscall(task_file(pid, tid, "syscall"));
    if (!call || !timed_call(call->number)) return;
    const auto processor = [&] {
      return parse_stat(task_file(pid, tid, "stat"), "thread " + std::to_string(tid)).processor;
    };
    const int cpu = processor();
    SchedTimes times = parse_sched(task_file(pid, tid, "sched"));
    if (cpu < 0 || processor() != cpu) times.exec_start_ns.reset();  // it was moved: by whose clock?
    if (times.voluntary_switches)
      seen_[tid] = {cpu, times.exec_start_ns, *times.voluntary_switches, Clock::now()};
  } catch (
      const Error&) {  // it has ended, or this kernel does not show it: its call waits as long as a new one
  }
}

void InterruptedCalls::make_again(const Tracee& thread) {
  user_regs_struct r = registers_of(thread);
  const long number = static_cast<long>(r.orig_rax);
  if (number < 0 || r.cs != kUserCode64) return;
  keep_slot(thread.pid, r);
  // A poll without a timeout can do without: its number is not lost then, should its frame have to bring it
  // back or the next stop want to know it.
  const bool endless_poll =
      r.rax == kRestartBlock && number == SYS_poll && static_cast<int>(argument(r, 2)) < 0;
  if (static_cast<long>(r.rax) != -EINTR && !endless_poll) return;
  const auto call = endless_poll ? std::optional(Call{}) : call_of(number);
  uint16_t instruction = 0;
  if (!call || !read_memory(thread.pid, r.rip - 2, &instruction, sizeof instruction) ||
      instruction != kSyscallInstruction)
    return;
  if (call->timeout != Timeout::none) again_.push_back({thread, asleep_since(thread)});
  r.rax = kRestartNoHand;
  iovec io{&r, sizeof r};
  trace::require(PTRACE_SETREGSET, thread.tid, trace::kRegsetGeneral, reinterpret_cast<uint64_t>(&io),
                 "cannot set its registers");
}

// A stop before this one has given it a time, which is its own as long as it is in that call.
void InterruptedCalls::keep_slot(pid_t pid, const user_regs_struct& r) {
  const auto call = timed_call(static_cast<long>(r.orig_rax));
  if (!call || call->timeout == Timeout::milliseconds) return;
  const auto area = InjectionArea::find(pid);
  if (!area) return;
  if (const auto slot = area->slot_at(argument(r, call->index))) slots_used_[pid].set(*slot);
}

// The sleep that was seen, if it was this one: the stop alone came after it. Of another one only its end is
// known.
InterruptedCalls::Clock::time_point InterruptedCalls::asleep_since(const Tracee& thread) {
  const auto it = seen_.find(thread.tid);
  if (it == seen_.end()) return Clock::now();
  try {
    const auto sleeps = parse_sched(task_file(thread.pid, thread.tid, "sched")).voluntary_switches;
    if (sleeps && *sleeps == it->second.sleeps + 1) return std::min(on_our_clock(it->second), it->second.at);
  } catch (const Error&) {
  }
  return Clock::now();
}

// Our clock is read last: whatever keeps us from the processor in between makes sleeps seem shorter, never
// longer (a timeout that ends early is a program's error, one that ends late is not). The least of some tries
// is the best.
std::optional<std::chrono::nanoseconds> InterruptedCalls::offset_here() {
  std::optional<std::chrono::nanoseconds> least;
  for (int i = 0; i < kOffsetTries; ++i) {
    sched_yield();  // brings the account of our own time up to now
    const auto task = own_exec_start_ns();
    if (!task) return std::nullopt;
    const std::chrono::nanoseconds found = Clock::now().time_since_epoch() - std::chrono::nanoseconds(*task);
    if (!least || found < *least) least = found;
  }
  return least;
}

// Processors' clocks of tasks may differ (they leave out time that a hypervisor took), so ours is read on the
// same one.
InterruptedCalls::Clock::time_point InterruptedCalls::on_our_clock(const Seen& seen) {
  if (!seen.asleep_ns) return seen.at;
  auto offset = offsets_.find(seen.cpu);
  if (offset == offsets_.end()) {
    cpu_set_t before, one;
    const bool known = sched_getaffinity(0, sizeof before, &before) == 0;
    CPU_ZERO(&one);
    if (seen.cpu < CPU_SETSIZE) CPU_SET(seen.cpu, &one);
    const bool moved = known && sched_setaffinity(0, sizeof one, &one) == 0;
    const auto found = moved ? offset_here() : std::nullopt;
    if (moved) (void)sched_setaffinity(0, sizeof before, &before);
    if (!found) return seen.at;
    offset = offsets_.emplace(seen.cpu, *found).first;
  }
  return Clock::time_point(offset->second + std::chrono::nanoseconds(*seen.asleep_ns));
}

void InterruptedCalls::age(const Tracee& thread, std::chrono::nanoseconds stood_still) {
  const user_regs_struct r = registers_of(thread);
  const long number = static_cast<long>(r.orig_rax);
  if (r.rax != kRestartNoHand || r.cs != kUserCode64) return;
  if (number != SYS_select && number != SYS_pselect6 && number != SYS_ppoll) return;
  const auto call = timed_call(number);
  const uint64_t time = argument(r, call->index);
  std::array<int64_t, 2> value{};
  if (time == 0 || !read_memory(thread.pid, time, value.data(), sizeof value)) return;
  const auto rest = time_left(value, units_of(call->timeout), stood_still.count());
  // Where the kernel could not write what is left, nor can we: what is there is the program's own time.
  if (rest) (void)write_as_program(thread.pid, time, rest->data(), sizeof *rest);
}

void InterruptedCalls::shorten() noexcept {
  for (const auto& again : again_) {
    try {
      shorten(again);
    } catch (const Error&) {  // it was killed
    }
  }
  again_.clear();
}

void InterruptedCalls::shorten(const Again& again) {
  user_regs_struct r = registers_of(again.thread);
  if (r.rax != kRestartNoHand || static_cast<long>(r.orig_rax) < 0) return;
  const auto call = timed_call(static_cast<long>(r.orig_rax));
  if (!call) return;
  const int64_t waited = (Clock::now() - again.since) / std::chrono::nanoseconds(1);
  const pid_t pid = again.thread.pid;
  const uint64_t given = argument(r, call->index);
  if (call->timeout == Timeout::milliseconds) {
    const int timeout = static_cast<int>(given);
    if (timeout <= 0) return;
    const int64_t left = std::max<int64_t>(0, timeout - waited / 1'000'000);
    set_argument(r, call->index, static_cast<uint64_t>(left));
  } else {
    // A time in memory is the program's own, which reads it again: the kernel is given another one.
    RingArgument ring{};
    uint64_t time = given;
    if (call->timeout == Timeout::ring) {
      const uint64_t flags = argument(r, 3);
      if ((flags & kRingExtArg) == 0 || (flags & (kRingAbsolute | kRingRegistered)) != 0) return;
      if (!read_memory(pid, given, &ring, sizeof ring)) return;
      time = ring.time;
    }
    std::array<int64_t, 2> value{};
    if (time == 0 || !read_memory(pid, time, value.data(), sizeof value)) return;
    const auto rest = time_left(value, units_of(call->timeout), waited);
    if (!rest) return;
    const auto area = InjectionArea::find(pid);
    if (!area) return;
    // Who gets none waits as long as at first.
    auto& used = slots_used_[pid];
    size_t slot = 0;
    if (const auto own = area->slot_at(given))
      slot = *own;
    else
      while (slot < used.size() && used.test(slot)) ++slot;
    if (slot == used.size()) return;
    used.set(slot);
    uint64_t to = area->slot(slot);
    const uint64_t argument_at = to;
    if (call->timeout == Timeout::ring) {
      to += sizeof ring;
      ring.time = to;
      if (!write_memory(pid, argument_at, &ring, sizeof ring)) return;
    }
    if (!write_memory(pid, to, rest->data(), sizeof *rest)) return;
    set_argument(r, call->index, argument_at);
  }
  iovec io{&r, sizeof r};
  trace::require(PTRACE_SETREGSET, again.thread.tid, trace::kRegsetGeneral, reinterpret_cast<uint64_t>(&io),
                 "cannot set its registers");
}

}  // namespace medes
