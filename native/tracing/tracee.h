// Stopping a sandbox's threads with ptrace, reading what they are doing, and running system calls inside
// them. All calls on one object must come from the thread that made it: ptrace belongs to a thread.
//
// Nothing here leaves a trace when the agent is killed half-way: the kernel lets stopped threads go on when
// their tracer dies, and a thread that was in an injected call returns by itself through the signal frame
// that was written for it (see signal_frame.h).
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_set>
#include <vector>

#include "common/wiped.h"
#include "image/image.h"
#include "tracing/gadgets.h"

namespace medes {

using TimePoint = std::chrono::steady_clock::time_point;

// One stopped thread.
struct Tracee {
  pid_t pid = 0, tid = 0;
  bool group_stopped = false;  // by SIGSTOP and the like: it stays so
};

// Threads that sleep in the kernel where nothing interrupts them (a vfork, a call whose userfaultfd event
// nobody has read) cannot be stopped there; they stop on their way back to user mode.
enum class Sleepers : uint8_t { refuse, leave };

class InterruptedCalls;

// All threads of some processes, stopped from construction until the tracer ends (run_as_tracer): the kernel
// lets all of them go at once then, while a thread let go before another could be woken by what is meant for
// that one. System calls that the stop interrupts are made again with the time that was left of their
// timeouts.
class StoppedProcesses {
 public:
  // Throws traced, process_gone, permission_denied, or, when sleepers are refused, busy for a thread that
  // does not stop by the deadline. With sleepers left it waits no longer than it must.
  StoppedProcesses(std::span<const pid_t> pids, TimePoint deadline, Sleepers sleepers = Sleepers::refuse);
  ~StoppedProcesses();
  StoppedProcesses(const StoppedProcesses&) = delete;
  StoppedProcesses& operator=(const StoppedProcesses&) = delete;

  std::span<const Tracee> threads() const { return threads_; }
  std::span<const Tracee> stopped() const { return std::span(threads_).first(stopped_); }
  std::vector<Tracee> threads_of(pid_t pid) const;
  TimePoint since() const { return since_; }  // the first was told to stop
  bool complete() const;                      // no thread is there that is not one of ours

 private:
  void settle() noexcept;
  void look_at_sleepers();
  void make_calls_again() noexcept;
  bool seize_new_threads(pid_t pid);
  void seize(pid_t pid, pid_t tid);
  void look_for_stops();
  void wait_for_stops(TimePoint deadline);
  bool only_sleepers_left() const;
  const Sleepers sleepers_;
  const std::vector<pid_t> pids_;
  // Seccomp filters, whether a thread has one or not: reading its status costs more than all the rest.
  bool suspends_all_;
  std::vector<Tracee> threads_;
  std::unordered_set<pid_t> tids_;  // theirs
  std::unique_ptr<InterruptedCalls> interrupted_;
  size_t stopped_ = 0;     // threads_[0 … stopped_) have stopped
  size_t made_again_ = 0;  // of these, the calls of so many were seen to
  TimePoint since_{};
};

// ptrace belongs to a thread, and ends with it: what `work` has stopped is let go when its thread ends, which
// is over when this returns.
void run_as_tracer(const std::function<void()>& work);

// While it lives no thread of the process begins a second call: each was told to stop on its way back to user
// mode, though some may not have got there by the timeout, and complete() tells afterwards whether one was
// born meanwhile. Nothing when somebody else traces a thread, or the process is gone. Only as a tracer
// (run_as_tracer), and once in each: a thread that did not stop is let go by the end of the tracer.
std::unique_ptr<StoppedProcesses> hold_threads(pid_t pid, std::chrono::microseconds timeout);
// While it lives, threads that are held and those asleep in a call run no code should we die: a SIGSTOP waits
// for them, which is taken back (by a SIGCONT) at the end. Not where that would be noticed: a process that
// handles SIGCONT, or is stopped already.
class StopOnDeath {
 public:
  StopOnDeath(pid_t pid, const StoppedProcesses& held, uint32_t& stop_note);
  ~StopOnDeath();
  StopOnDeath(const StopOnDeath&) = delete;
  StopOnDeath& operator=(const StopOnDeath&) = delete;

 private:
  const pid_t pid_;
  uint32_t& stop_note_;
  bool sent_ = false;
};
// A thread of this program (an eviction, say) traces one of the process's.
bool traced_by_us(pid_t pid);

// Of processes that stand still by SIGSTOP, before they are continued: what they wait for has come nearer by
// that time, as it would have. Best effort.
void count_standstill(std::span<const pid_t> pids, std::chrono::nanoseconds stood_still);

user_regs_struct registers_of(const Tracee& thread);  // throws process_gone

// Where a frame may be written, below `top` and not below `bottom`; and kScratchBytes for the arguments of
// injected calls, 0 where there is no room for them.
struct FramePlace {
  uint64_t bottom = 0, top = 0, scratch = 0;
};

// Runs system calls in one stopped thread and puts it back as it was, restartable calls included.
class Injector {
 public:
  // Calls are given up at `deadline`, and at once when the thread's cgroup is frozen. Throws unsupported
  // (32-bit code), busy (the place cannot be written), process_gone.
  // With `abandoned` set a call that does not return throws cancelled: all is as if we had been killed in it.
  Injector(const Tracee& thread, const Gadgets& gadgets, const FramePlace& place, TimePoint deadline,
           const std::atomic<bool>* abandoned);
  ~Injector();  // finish(), errors swallowed
  Injector(const Injector&) = delete;
  Injector& operator=(const Injector&) = delete;

  // The call's result (-errno on failure). `while_waiting` runs again and again until the call returns.
  // Throws process_gone, and busy when the thread does not get to run it: then nothing was called, the thread
  // is as it was found (or will be when it runs again) and no other call may be asked for.
  long call(long number, std::span<const uint64_t> arguments,
            const std::function<void()>& while_waiting = nullptr);
  // The same for a call that takes memory away, with others of its threads about: should we die before it
  // ends, they must not write in between what it then takes. A SIGSTOP waits for all of them meanwhile; they
  // get it in the moment in which they are no longer ours, and we take it back otherwise.
  long call_alone(long number, std::span<const uint64_t> arguments,
                  const std::function<void()>& while_waiting = nullptr);
  // Says that there are others, and where a StopNote is kept. Without it call_alone() is call().
  void has_others(uint32_t& stop_note) { stop_note_ = &stop_note; }
  void finish();

  // From the next call on the frame there is the one in use.
  void move_to(const FramePlace& place);
  static uint64_t frame_bytes(const Tracee& thread);  // what a frame of it takes at most

  uint64_t frame_address() const { return frame_address_; }
  uint64_t scratch() const { return place_.scratch; }  // kScratchBytes of the sandbox's memory
  static constexpr size_t kScratchBytes = 4096;
  void write_scratch(size_t offset, const void* data, size_t length);
  void read_scratch(size_t offset, void* data, size_t length);

 private:
  void enter();
  long leave(long number, std::span<const uint64_t> arguments, const std::function<void()>& while_waiting);
  void resume_until_entry();
  uint8_t stop_of(int status) const;
  std::optional<int> wait_for_interrupted(TimePoint deadline) const;
  [[noreturn]] void interrupt_and_throw();
  [[noreturn]] void abandon();
  void put_back();
  void take_stop_back();
  Tracee thread_;
  Gadgets gadgets_;
  user_regs_struct saved_{};
  uint64_t saved_mask_ = 0;
  FramePlace place_;
  const TimePoint deadline_;
  const std::atomic<bool>* const abandoned_;
  WipedBytes xstate_;
  uint64_t frame_address_ = 0;
  bool begun_ = false, finished_ = false;
  uint32_t* stop_note_ = nullptr;
  bool stop_waits_ = false;
};

}  // namespace medes
