// System calls that a stop ends with EINTR are made again, with the time that is left of their timeouts.
//
// The kernel itself makes most interrupted calls again. Those that it does not (signal(7): epoll_wait, semop,
// sigtimedwait, sockets with timeouts, io_uring_enter …) fail in the program, although no signal came.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <bitset>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <unordered_map>

#include "tracing/injection_area.h"
#include "tracing/tracee.h"

namespace medes {

class InterruptedCalls {
 public:
  // Before a thread is told to stop: notes since when it sleeps, if it sleeps in a call with a timeout.
  void look(pid_t pid, pid_t tid);
  // Of a thread that has stopped: its call is made again when it is let go, unless a handler runs first.
  void make_again(const Tracee& thread);
  // The kernel counts no time in which a process stood still by SIGSTOP towards a select or ppoll: this much
  // has passed. Their timeouts are where the kernel keeps what is left of them, in the program's memory.
  static void age(const Tracee& thread, std::chrono::nanoseconds stood_still);
  // Just before all are let go: what is left of the timeouts, as of now.
  void shorten() noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  struct Seen {
    int cpu = 0;
    std::optional<int64_t> asleep_ns;  // by that processor's clock of tasks
    uint64_t sleeps = 0;               // voluntary switches so far
    Clock::time_point at;
  };
  struct Again {
    Tracee thread;
    Clock::time_point since;  // the call waits
  };
  void keep_slot(pid_t pid, const user_regs_struct& registers);
  Clock::time_point asleep_since(const Tracee& thread);
  Clock::time_point on_our_clock(const Seen& seen);
  // What this processor's clock of tasks is behind ours, at least.
  static std::optional<std::chrono::nanoseconds> offset_here();
  void shorten(const Again& again);

  std::unordered_map<pid_t, Seen> seen_;
  std::vector<Again> again_;
  std::unordered_map<pid_t, std::bitset<InjectionArea::kSlots>> slots_used_;  // of each process's area
  std::map<int, std::chrono::nanoseconds> offsets_;  // of processors' clocks of tasks, to ours
};

}  // namespace medes
