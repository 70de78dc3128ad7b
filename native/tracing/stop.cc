// Stopping and releasing all threads of a set of processes.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include "common/error.h"
#include "procfs/proc.h"
#include "store/sandbox_file.h"
#include "tracing/frozen.h"
#include "tracing/interrupted_calls.h"
#include "tracing/ptrace_calls.h"
#include "tracing/seccomp_rights.h"
#include "tracing/tracee.h"

namespace medes {
namespace {

constexpr unsigned kRoundsPerLook = 16;
constexpr unsigned kRoundsAwake = 64;
constexpr timespec kReleasePause{0, 100'000};
constexpr std::chrono::seconds kReleasePatience{2};
// Who waits in the kernel for a lock on the way out of its call looks like a sleeper for a moment.
constexpr std::chrono::milliseconds kSleepersPatience{5};

std::string pid_object(pid_t pid) { return "pid " + std::to_string(pid); }

std::string status_of(pid_t pid, pid_t tid) {
  return read_proc_file("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/status", pid);
}

// Why the kernel refused to let us trace: a second tracer is the common reason.
Error seize_error(int err, pid_t pid, pid_t tid, bool filtered) {
  if (err == ESRCH) return Error(Code::process_gone, "the thread has exited", pid_object(pid));
  if (err == EPERM) {
    const uint64_t tracer = field_of(status_of(pid, tid), "TracerPid");
    if (tracer != 0)
      return Error(Code::traced, "process " + std::to_string(tracer) + " traces it", pid_object(pid),
                   "detach the debugger first");
  }
  const MissingRight missing = missing_seccomp_right();
  if (err == EPERM && filtered && !missing.what.empty())
    return Error(Code::permission_denied, "it has a seccomp filter: " + missing.what, pid_object(pid),
                 missing.how);
  return errno_error(err, "cannot stop it with ptrace", pid_object(pid),
                     "the agent needs CAP_SYS_PTRACE over the sandbox");
}

bool is_dead(const std::string& status) {
  return status.find("\nState:\tZ") != std::string::npos || status.find("\nState:\tX") != std::string::npos;
}

bool sleeps_in_kernel(const Tracee& t) {
  try {
    return status_of(t.pid, t.tid).find("\nState:\tD") != std::string::npos;
  } catch (const Error&) {
    return true;  // it has ended: nothing to wait for
  }
}

// Their ends are told to it by SIGCHLD.
bool has_children(pid_t pid, pid_t tid) {
  try {
    return !read_proc_file("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/children", pid)
                .empty();
  } catch (const Error&) {
    return false;  // it has ended
  }
}

// It has ended, or is a worker of io_uring, which never gets to user mode and cannot be traced.
bool runs_no_code(pid_t pid, pid_t tid) {
  try {
    const std::string status = status_of(pid, tid);
    return is_dead(status) || status.starts_with("Name:\tiou-");
  } catch (const Error&) {
    return true;
  }
}

// Why a thread has not stopped in time.
Error why_not(const Tracee& t) {
  if (const auto path = frozen_cgroup_of(t.pid); !path.empty()) return frozen_error(t.pid, path);
  const bool asleep = sleeps_in_kernel(t);
  return Error(Code::busy,
               asleep ? "a thread does not stop: it sleeps in the kernel"
                      : "a thread does not stop: it gets no processor time",
               "thread " + std::to_string(t.tid), "try again when the sandbox is idle");
}

// What a thread blocks while the C library makes or ends it: all that there is, and of the library's own two
// (32 and 33), which no program blocks through it, one at least. It reads no signalfd then.
bool blocks_as_library(uint64_t blocked) {
  constexpr uint64_t kUnblockable = 1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1);
  constexpr uint64_t kOfLibrary = 1ull << 31 | 1ull << 32;
  return (blocked | kUnblockable | kOfLibrary) == ~0ull && (blocked & kOfLibrary) != 0;
}

// Those that this thread handles, or blocks and may read; nothing of one that has ended, to which no signal
// comes.
std::optional<uint64_t> seen_signals(pid_t pid, pid_t tid) {
  std::string status;
  try {
    status = status_of(pid, tid);
  } catch (const Error& e) {
    if (e.code == Code::process_gone || e.code == Code::not_found) return std::nullopt;
    throw;
  }
  if (status.find("\nSigCgt:") == std::string::npos) return std::nullopt;
  const uint64_t handled = field_of(status, "SigCgt", 16), blocked = field_of(status, "SigBlk", 16);
  return blocks_as_library(blocked) ? handled : handled | blocked;
}

enum class Wait { stopped, not_yet, gone };

// One look at a thread that was asked to stop. A signal on its way is delivered first: the thread then
// stops at the entry of its handler, where it can be left for any time.
Wait poll_stop(Tracee& t) {
  int status = 0;
  const pid_t got = waitpid(t.tid, &status, __WALL | WNOHANG | __WNOTHREAD);
  if (got == 0) return Wait::not_yet;
  if (got < 0) return errno == EINTR ? Wait::not_yet : Wait::gone;
  if (!WIFSTOPPED(status)) return Wait::gone;
  if (status >> 16 == trace::kEventStop) {
    t.group_stopped = WSTOPSIG(status) != SIGTRAP;
    return Wait::stopped;
  }
  const int signal = status >> 16 == 0 ? WSTOPSIG(status) : 0;
  (void)trace::request(PTRACE_CONT, t.tid, 0, static_cast<uint64_t>(signal));
  return Wait::not_yet;
}

}  // namespace

void run_as_tracer(const std::function<void()>& work) {
  std::exception_ptr failure;
  pid_t tracer = 0;
  std::thread([&] {
    tracer = gettid();
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  // The kernel comes to its tracees after it has told that the thread is over.
  const auto deadline = std::chrono::steady_clock::now() + kReleasePatience;
  while (tgkill(getpid(), tracer, 0) == 0 && std::chrono::steady_clock::now() < deadline) sched_yield();
  if (failure) std::rethrow_exception(failure);
}

StoppedProcesses::StoppedProcesses(std::span<const pid_t> pids, TimePoint deadline, Sleepers sleepers)
    : sleepers_(sleepers),
      pids_(pids.begin(), pids.end()),
      suspends_all_(missing_seccomp_right().what.empty()),
      interrupted_(std::make_unique<InterruptedCalls>()) {
  try {
    look_at_sleepers();
    since_ = std::chrono::steady_clock::now();
    // A running thread may make another while we look, so look again until nothing new is found.
    for (bool found = true; found;) {
      found = false;
      for (pid_t pid : pids) found |= seize_new_threads(pid);
      wait_for_stops(deadline);
    }
    make_calls_again();
  } catch (...) {
    settle();
    throw;
  }
}

StoppedProcesses::~StoppedProcesses() { settle(); }

// While they still sleep undisturbed.
void StoppedProcesses::look_at_sleepers() {
  for (pid_t pid : pids_) {
    try {
      for (pid_t tid : medes::threads_of(pid)) interrupted_->look(pid, tid);
    } catch (const Error&) {  // which is found out anew by the stop
    }
  }
}

// A signal that does nothing (SIGCHLD or SIGURG without a handler) is dropped where it arrives, unless that
// thread is traced. Then it is queued, and where the thread is busy or stopped the kernel wakes another one
// to look at it: were that one not ours yet, or not told to stop, its call would end with EINTR. So those at
// which signals arrive are the last to become ours, and the first that the kernel lets go when we end (it
// begins with the latest).
bool StoppedProcesses::seize_new_threads(pid_t pid) {
  const size_t before = threads_.size();
  std::vector<pid_t> signalled;
  for (pid_t tid : medes::threads_of(pid)) {
    if (tids_.contains(tid)) continue;
    if (tid == pid || has_children(pid, tid))
      signalled.push_back(tid);
    else
      seize(pid, tid);
  }
  for (pid_t tid : signalled) seize(pid, tid);
  return threads_.size() > before;
}

void StoppedProcesses::seize(pid_t pid, pid_t tid) {
  if (sleepers_ == Sleepers::leave && runs_no_code(pid, tid)) return;
  uint64_t options = trace::kOptionSysgood | (suspends_all_ ? trace::kOptionSuspendSeccomp : 0);
  if (!suspends_all_) {
    std::string status;
    try {
      status = status_of(pid, tid);
    } catch (const Error& e) {
      if (e.code == Code::process_gone || e.code == Code::not_found) return;  // this thread ended meanwhile
      throw;
    }
    if (is_dead(status)) return;  // a main thread that has exited while others run
    if (field_of(status, "Seccomp") != 0) options |= trace::kOptionSuspendSeccomp;
  }
  if (trace::request(trace::kSeize, tid, 0, options) < 0) {
    const int err = errno;
    // Whatever it is, it is told apart by the thread's status; and a filter of none is not to be suspended
    // where the kernel does not let us (it asks for the right outside of all user namespaces).
    if (std::exchange(suspends_all_, false)) return seize(pid, tid);
    try {
      // A thread on its way out answers ESRCH or EPERM; it needs no stopping.
      if (tid != pid && (err == ESRCH || is_dead(status_of(pid, tid)))) return;
      throw seize_error(err, pid, tid, (options & trace::kOptionSuspendSeccomp) != 0);
    } catch (const Error& e) {
      if (tid != pid && (e.code == Code::process_gone || e.code == Code::not_found)) return;
      throw;
    }
  }
  threads_.push_back({pid, tid, false});
  tids_.insert(tid);
  if (trace::request(trace::kInterrupt, tid, 0, 0) < 0 && errno != ESRCH)
    throw errno_error(errno, "cannot interrupt a thread", pid_object(pid));
}

void StoppedProcesses::look_for_stops() {
  for (size_t i = stopped_; i < threads_.size();) {
    const Wait w = poll_stop(threads_[i]);
    if (w == Wait::gone) {
      tids_.erase(threads_[i].tid);
      std::swap(threads_[i], threads_.back());
      threads_.pop_back();
      continue;
    }
    if (w == Wait::stopped) std::swap(threads_[i], threads_[stopped_++]);
    ++i;
  }
}

void StoppedProcesses::wait_for_stops(TimePoint deadline) {
  unsigned rounds = 0;
  while (stopped_ < threads_.size()) {
    look_for_stops();
    if (stopped_ == threads_.size()) return;
    const bool late = std::chrono::steady_clock::now() > deadline;
    if (sleepers_ == Sleepers::leave) {
      if (late || (++rounds % kRoundsPerLook == 0 && only_sleepers_left())) return;
      continue;  // the wait is shorter than giving up the core would be
    }
    if (late) throw why_not(threads_[stopped_]);
    if (++rounds < kRoundsAwake) {
      sched_yield();
    } else {
      const timespec pause{0, 50'000};
      nanosleep(&pause, nullptr);
    }
  }
}

bool StoppedProcesses::only_sleepers_left() const {
  return std::all_of(threads_.begin() + static_cast<ptrdiff_t>(stopped_), threads_.end(), sleeps_in_kernel);
}

bool StoppedProcesses::complete() const {
  for (pid_t pid : pids_) {
    try {
      for (pid_t tid : medes::threads_of(pid))
        if (!tids_.contains(tid) && !runs_no_code(pid, tid)) return false;
    } catch (const Error&) {  // the process is gone
    }
  }
  return true;
}

bool traced_by_us(pid_t pid) {
  const auto by_us = [pid](pid_t tid) {
    try {
      const uint64_t tracer = field_of(status_of(pid, tid), "TracerPid");
      return tracer != 0 && access(("/proc/self/task/" + std::to_string(tracer)).c_str(), F_OK) == 0;
    } catch (const Error&) {
      return false;  // it has ended
    }
  };
  try {
    const auto threads = medes::threads_of(pid);
    return std::any_of(threads.begin(), threads.end(), by_us);
  } catch (const Error&) {
    return false;
  }
}

std::unique_ptr<StoppedProcesses> hold_threads(pid_t pid, std::chrono::microseconds timeout) {
  const pid_t pids[] = {pid};
  try {
    return std::make_unique<StoppedProcesses>(pids, std::chrono::steady_clock::now() + timeout,
                                              Sleepers::leave);
  } catch (const Error&) {
    return nullptr;
  }
}

void count_standstill(std::span<const pid_t> pids, std::chrono::nanoseconds stood_still) {
  constexpr std::chrono::milliseconds kPatience{200};
  run_as_tracer([&] {
    try {
      const StoppedProcesses stop(pids, std::chrono::steady_clock::now() + kPatience, Sleepers::leave);
      for (const auto& t : stop.stopped())
        if (t.group_stopped) InterruptedCalls::age(t, stood_still);
    } catch (const Error&) {  // a debugger, a process that has ended: it waits as after any SIGSTOP
    }
  });
}

StopOnDeath::StopOnDeath(pid_t pid, const StoppedProcesses& held, uint32_t& stop_note)
    : pid_(pid), stop_note_(stop_note) {
  // The death of an agent before us has stopped it, and that is to last.
  if (std::atomic_ref(stop_note_).load(std::memory_order_acquire) != kNotStopped) return;
  const auto threads = held.threads();
  if (std::any_of(threads.begin(), threads.end(), [](const Tracee& t) { return t.group_stopped; })) return;
  try {
    // The signal that takes it back is seen by who handles it, and by who blocks it and reads a signalfd.
    bool any = false;
    for (pid_t tid : medes::threads_of(pid)) {
      const auto seen = seen_signals(pid, tid);
      if (seen && *seen >> (SIGCONT - 1) & 1) return;
      any |= seen.has_value();
    }
    if (!any) return;
  } catch (const Error&) {
    return;  // it is gone
  }
  std::atomic_ref(stop_note_).store(kMayBeStopped, std::memory_order_release);
  sent_ = kill(pid, SIGSTOP) == 0;
  std::atomic_ref(stop_note_).store(sent_ ? kStopped : kNotStopped, std::memory_order_release);
}

StopOnDeath::~StopOnDeath() {
  if (!sent_) return;
  (void)kill(pid_, SIGCONT);
  std::atomic_ref(stop_note_).store(kNotStopped, std::memory_order_release);
}

std::vector<Tracee> StoppedProcesses::threads_of(pid_t pid) const {
  std::vector<Tracee> out;
  for (const auto& t : threads_)
    if (t.pid == pid) out.push_back(t);
  // The main thread first: it is the one whose stack is the [stack] mapping.
  std::stable_partition(out.begin(), out.end(), [](const Tracee& t) { return t.tid == t.pid; });
  return out;
}

// Of those that have stopped since the last time.
void StoppedProcesses::make_calls_again() noexcept {
  for (; made_again_ < stopped_; ++made_again_) {
    try {
      interrupted_->make_again(threads_[made_again_]);
    } catch (const Error&) {  // it was killed
    }
  }
}

void StoppedProcesses::settle() noexcept {
  // Who was told to stop is out of its call, and what that ends with is ours to mend: so each is waited for,
  // but those that sleep in the kernel, where no call is interrupted. What does not stop in time may see
  // EINTR.
  const auto begin = std::chrono::steady_clock::now();
  auto others_seen = begin;
  for (unsigned rounds = 1;; ++rounds) {
    look_for_stops();
    const auto now = std::chrono::steady_clock::now();
    if (stopped_ == threads_.size() || now > begin + kReleasePatience) break;
    if (rounds % kRoundsPerLook == 0) {
      if (!only_sleepers_left()) others_seen = now;
      if (now > others_seen + kSleepersPatience) break;
    }
    if (rounds < kRoundsAwake)
      sched_yield();
    else
      nanosleep(&kReleasePause, nullptr);
  }
  make_calls_again();
  interrupted_->shorten();
}

}  // namespace medes
