// Stopping a sandbox's threads with ptrace, reading what they are doing, and running system calls inside
// them. All calls on one object must come from the thread that made it: ptrace belongs to a thread.
//
// Nothing here leaves a trace when the agent is killed half-way: the kernel lets stopped threads go on when
// their tracer dies, and a thread that was in an injected call returns by itself through the signal frame
// that was written for it (see signal_frame.h).
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "live/gadgets.h"
#include "memory/image.h"

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

// All threads of some processes, stopped from construction until release() or destruction.
class StoppedProcesses {
 public:
  // Throws traced, process_gone, permission_denied, or, when sleepers are refused, busy for a thread that
  // does not stop by the deadline; all are let go then. With sleepers left it waits no longer than it must.
  StoppedProcesses(std::span<const pid_t> pids, TimePoint deadline, Sleepers sleepers = Sleepers::refuse);
  ~StoppedProcesses();
  StoppedProcesses(const StoppedProcesses&) = delete;
  StoppedProcesses& operator=(const StoppedProcesses&) = delete;

  std::span<const Tracee> threads() const { return threads_; }
  std::span<const Tracee> stopped() const { return std::span(threads_).first(stopped_); }
  std::vector<Tracee> threads_of(pid_t pid) const;
  bool complete() const;    // no thread is there that is not one of ours
  void release() noexcept;  // idempotent

 private:
  bool seize_new_threads(pid_t pid);
  void seize(pid_t pid, pid_t tid);
  void wait_for_stops(TimePoint deadline);
  bool only_sleepers_left() const;
  const Sleepers sleepers_;
  const std::vector<pid_t> pids_;
  std::vector<Tracee> threads_;
  size_t stopped_ = 0;  // threads_[0 … stopped_) have stopped
};

// ptrace belongs to a thread, and ends with it: whatever `work` could not detach from in time (a thread
// asleep in the kernel) is let go when its own thread ends.
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

user_regs_struct registers_of(const Tracee& thread);  // throws process_gone

// Address ranges of a thread that the kernel itself reads or writes without raising an event, or that it
// needs at once: restartable-sequence area, thread control block, robust list, top of the stack.
void add_kernel_ranges(const Tracee& thread, std::vector<AddressRange>& out);

// Makes a thread that the stop threw out of an epoll_wait without timeout enter it again.
void restart_epoll_wait(const Tracee& thread);

// Runs system calls in one stopped thread and puts it back as it was, restartable calls included.
class Injector {
 public:
  // `frame_top`: the frame is written below this address of dead stack memory, never below
  // `frame_bottom`. Throws unsupported (32-bit code), busy (no room for the frame).
  Injector(const Tracee& thread, const Gadgets& gadgets, uint64_t frame_bottom, uint64_t frame_top);
  ~Injector();  // finish(), errors swallowed
  Injector(const Injector&) = delete;
  Injector& operator=(const Injector&) = delete;

  // The call's result (-errno on failure). `while_waiting` runs again and again until the call returns.
  // Throws process_gone.
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

  uint64_t frame_address() const { return frame_address_; }
  AddressRange frame_range() const { return frame_range_; }
  uint64_t scratch() const { return frame_range_.begin; }  // kScratchBytes of the sandbox's memory
  static constexpr size_t kScratchBytes = 4096;
  void write_scratch(size_t offset, const void* data, size_t length);
  void read_scratch(size_t offset, void* data, size_t length);

 private:
  void enter(long number, std::span<const uint64_t> arguments);
  void resume_until_syscall_stop(uint8_t wanted, const std::function<void()>& while_waiting);
  void take_stop_back();
  Tracee thread_;
  Gadgets gadgets_;
  user_regs_struct saved_{};
  uint64_t saved_mask_ = 0;
  uint64_t frame_address_ = 0;
  AddressRange frame_range_;
  bool begun_ = false, finished_ = false;
  uint32_t* stop_note_ = nullptr;
  bool stop_waits_ = false;
};

// Where a frame may go: the main stack below the stack pointer of the thread that uses it.
struct FrameRoom {
  uint64_t bottom = 0, top = 0;
};
FrameRoom frame_room(std::span<const Vma> vmas, std::span<const Tracee> threads);

}  // namespace medes
