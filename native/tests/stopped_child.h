// A process that makes one call, and stops of it.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "procfs/proc.h"
#include "tracing/injection_area.h"
#include "tracing/process_bytes.h"
#include "tracing/system_calls.h"

namespace medes {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Outcome {
  long result = 0;
  int error = 0;
  int handled = 0;  // signals
};

inline volatile sig_atomic_t g_handled = 0;

// A forked process that makes one call and says how it ended; killed at the end.
class Child {
 public:
  explicit Child(const std::function<long()>& call) {
    int fds[2];
    EXPECT_EQ(pipe(fds), 0);
    pid_ = fork();
    if (pid_ == 0) {
      Outcome out;
      errno = 0;
      out.result = call();
      out.error = out.result < 0 ? errno : 0;
      out.handled = g_handled;
      (void)!write(fds[1], &out, sizeof out);
      _exit(0);
    }
    close(fds[1]);
    pipe_ = fds[0];
  }
  ~Child() {
    kill(pid_, SIGKILL);
    (void)waitpid(pid_, nullptr, 0);
    close(pipe_);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  pid_t pid() const { return pid_; }

  // "number a0 … a5 sp ip" once it sleeps in the call.
  std::vector<unsigned long long> sleeping_in(long number) const {
    for (int i = 0; i < 5000; ++i) {
      const std::string text = read_proc_file("/proc/" + std::to_string(pid_) + "/syscall", pid_, 4096);
      std::vector<unsigned long long> fields(9);
      if (sscanf(text.c_str(), "%lld %llx %llx %llx %llx %llx %llx %llx %llx",
                 reinterpret_cast<long long*>(&fields[0]), &fields[1], &fields[2], &fields[3], &fields[4],
                 &fields[5], &fields[6], &fields[7], &fields[8]) == 9 &&
          static_cast<long>(fields[0]) == number && read_stat(pid_).state == 'S')
        return fields;
      std::this_thread::sleep_for(milliseconds(1));
    }
    const std::string folder = "/proc/" + std::to_string(pid_) + "/";
    ADD_FAILURE() << "it does not sleep in call " << number << ": "
                  << read_proc_file(folder + "syscall", pid_, 4096)
                  << read_proc_file(folder + "status", pid_, 4096);
    return std::vector<unsigned long long>(9);
  }
  bool has_ended() const {
    pollfd p{pipe_, POLLIN, 0};
    return poll(&p, 1, 0) == 1;
  }
  Outcome outcome() const {
    Outcome out;
    EXPECT_EQ(read(pipe_, &out, sizeof out), static_cast<ssize_t>(sizeof out));
    return out;
  }

 private:
  pid_t pid_ = 0;
  int pipe_ = -1;
};

inline void stop_for(pid_t pid, milliseconds how_long,
                     const std::function<void(StoppedProcesses&)>& meanwhile = {}) {
  run_as_tracer([&] {
    const pid_t pids[] = {pid};
    StoppedProcesses stop(pids, steady_clock::now() + std::chrono::seconds(5));
    if (meanwhile) meanwhile(stop);
    std::this_thread::sleep_for(how_long);
  });
}

inline std::unique_ptr<Injector> inject_into(StoppedProcesses& stop, pid_t pid,
                                             milliseconds limit = milliseconds(5000)) {
  const auto vmas = read_maps(pid);
  return inject(stop.threads_of(pid).front(), find_gadgets(pid, vmas), vmas, InjectionArea::find(pid),
                steady_clock::now() + limit);
}

inline constexpr int kHourMs = 3'600'000;
inline constexpr timespec kHour{3600, 0};

}  // namespace medes
