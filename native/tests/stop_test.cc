// Stops of real processes: calls that go on, frames that lie in nobody's way, freezers.
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "common/error.h"
#include "live/frozen.h"
#include "live/injection_area.h"
#include "live/kernel_ranges.h"
#include "live/process_bytes.h"
#include "live/system_calls.h"
#include "memory/proc.h"

namespace medes {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Outcome {
  long result = 0;
  int error = 0;
  int handled = 0;  // signals
};

volatile sig_atomic_t g_handled = 0;

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

void stop_for(pid_t pid, milliseconds how_long,
              const std::function<void(StoppedProcesses&)>& meanwhile = {}) {
  run_as_tracer([&] {
    const pid_t pids[] = {pid};
    StoppedProcesses stop(pids, steady_clock::now() + std::chrono::seconds(5));
    if (meanwhile) meanwhile(stop);
    std::this_thread::sleep_for(how_long);
  });
}

std::unique_ptr<Injector> inject_into(StoppedProcesses& stop, pid_t pid,
                                      milliseconds limit = milliseconds(5000)) {
  const auto vmas = read_maps(pid);
  return inject(stop.threads_of(pid).front(), find_gadgets(pid, vmas), vmas, steady_clock::now() + limit);
}

constexpr int kHourMs = 3'600'000;
constexpr timespec kHour{3600, 0};

struct Case {
  const char* name;
  long number;
  std::function<long()> call;
};

int socket_with_timeout() {
  int sv[2];
  (void)!socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
  const timeval hour{3600, 0};
  setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof hour);
  return sv[0];
}

int semaphore() { return semget(IPC_PRIVATE, 1, 0600); }

long wait_for_signal(const timespec* timeout) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return syscall(SYS_rt_sigtimedwait, &set, nullptr, timeout, 8);
}

std::vector<Case> cases() {
  static sembuf down{0, -1, 0};
  static epoll_event event;
  static char byte;
  return {
      {"epoll_wait", SYS_epoll_wait, [] { return epoll_wait(epoll_create1(0), &event, 1, kHourMs); }},
      {"epoll_wait, no timeout", SYS_epoll_wait, [] { return epoll_wait(epoll_create1(0), &event, 1, -1); }},
      {"epoll_pwait", SYS_epoll_pwait,
       [] {
         sigset_t none;
         sigemptyset(&none);
         return epoll_pwait(epoll_create1(0), &event, 1, kHourMs, &none);
       }},
      {"epoll_pwait2", kSysEpollPwait2,
       [] { return syscall(kSysEpollPwait2, epoll_create1(0), &event, 1, &kHour, nullptr, 8); }},
      {"sigwaitinfo", SYS_rt_sigtimedwait, [] { return wait_for_signal(nullptr); }},
      {"sigtimedwait", SYS_rt_sigtimedwait, [] { return wait_for_signal(&kHour); }},
      {"recv", SYS_recvfrom, [] { return recv(socket_with_timeout(), &byte, 1, 0); }},
      {"read of a socket", SYS_read, [] { return read(socket_with_timeout(), &byte, 1); }},
      {"semop", SYS_semop, [] { return syscall(SYS_semop, semaphore(), &down, 1); }},
      {"semtimedop", SYS_semtimedop, [] { return syscall(SYS_semtimedop, semaphore(), &down, 1, &kHour); }},
      {"ppoll of a constant", SYS_ppoll, [] { return syscall(SYS_ppoll, nullptr, 0, &kHour, nullptr, 8); }},
      {"pselect of a constant", SYS_pselect6,
       [] { return syscall(SYS_pselect6, 0, nullptr, nullptr, nullptr, &kHour, nullptr); }},
      {"poll", SYS_poll, [] { return syscall(SYS_poll, nullptr, 0, kHourMs); }},
      {"pause", SYS_pause, [] { return syscall(SYS_pause); }},
  };
}

TEST(Stops, CallsGoOn) {
  for (const auto& c : cases()) {
    SCOPED_TRACE(c.name);
    const Child child(c.call);
    (void)child.sleeping_in(c.number);
    for (int round = 0; round < 3; ++round) {
      stop_for(child.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
        if (round != 1) return;
        EXPECT_EQ(inject_into(stop, child.pid())->call(SYS_getpid, {}), child.pid());
      });
      // (poll is gone on with by restart_syscall, which takes no arguments.)
      if (c.number != SYS_poll) (void)child.sleeping_in(c.number);
    }
    EXPECT_FALSE(child.has_ended());
  }
}

// What the kernel is given for what is left: never more than was left when the stop began, never less than
// when it was over.
TEST(Stops, TimeoutsAreWhatIsLeft) {
  for (const auto& c : cases()) {
    int at = -1;
    if (c.number == SYS_epoll_wait || c.number == SYS_epoll_pwait || c.number == kSysEpollPwait2) at = 3;
    if (c.number == SYS_semtimedop) at = 3;
    if (c.number == SYS_rt_sigtimedwait || c.number == SYS_ppoll) at = 2;
    if (c.number == SYS_pselect6) at = 4;
    if (at < 0) continue;
    SCOPED_TRACE(c.name);
    const auto born = steady_clock::now();
    const Child child(c.call);
    const auto before = child.sleeping_in(c.number);
    const auto asleep = steady_clock::now();
    const bool in_memory = before[1 + at] > UINT32_MAX;
    if (!in_memory && static_cast<int>(before[1 + at]) <= 0) continue;  // it waits for ever
    std::this_thread::sleep_for(milliseconds(50));
    stop_for(child.pid(), milliseconds(0),
             [&](StoppedProcesses& stop) { (void)inject_into(stop, child.pid())->call(SYS_getpid, {}); });
    const auto slept_least = std::chrono::duration_cast<milliseconds>(steady_clock::now() - asleep);
    stop_for(child.pid(), milliseconds(0));
    const auto fields = child.sleeping_in(c.number);
    const auto slept_most = std::chrono::duration_cast<milliseconds>(steady_clock::now() - born);
    int64_t left_ms = static_cast<int>(fields[1 + at]);
    if (in_memory) {
      timespec left{};
      ASSERT_TRUE(read_memory(child.pid(), fields[1 + at], &left, sizeof left));
      left_ms = left.tv_sec * 1000 + left.tv_nsec / 1'000'000;
    }
    constexpr int kRounding = 2;
    EXPECT_LE(left_ms, kHourMs - slept_least.count() + kRounding);
    EXPECT_GE(left_ms, kHourMs - slept_most.count() - kRounding);
  }
}

TEST(Stops, ATimeoutThatRanOutMeanwhileIsTheCallsOwn) {
  const Child waits([] {
    epoll_event event;
    return epoll_wait(epoll_create1(0), &event, 1, 200);
  });
  (void)waits.sleeping_in(SYS_epoll_wait);
  stop_for(waits.pid(), milliseconds(300));
  EXPECT_EQ(waits.outcome().result, 0);
  const Child signalled([] {
    const timespec soon{0, 200'000'000};
    return wait_for_signal(&soon);
  });
  (void)signalled.sleeping_in(SYS_rt_sigtimedwait);
  stop_for(signalled.pid(), milliseconds(300),
           [&](StoppedProcesses& stop) { (void)inject_into(stop, signalled.pid())->call(SYS_getpid, {}); });
  const Outcome out = signalled.outcome();
  EXPECT_EQ(out.result, -1);
  EXPECT_EQ(out.error, EAGAIN);
}

TEST(Stops, ASignalWithAHandlerStillEndsTheCall) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer runs handlers later";
#endif
  for (bool with_mask : {false, true}) {
    const Child child([with_mask] {
      struct sigaction action{};
      action.sa_handler = [](int) { g_handled = g_handled + 1; };
      sigaction(SIGUSR1, &action, nullptr);
      sigset_t all, none;
      sigfillset(&all);
      sigemptyset(&none);
      if (with_mask) sigprocmask(SIG_BLOCK, &all, nullptr);
      epoll_event event;
      const int fd = epoll_create1(0);
      return with_mask ? epoll_pwait(fd, &event, 1, kHourMs, &none) : epoll_wait(fd, &event, 1, kHourMs);
    });
    (void)child.sleeping_in(with_mask ? SYS_epoll_pwait : SYS_epoll_wait);
    // It comes while all stand still, after the call was set up to be made again.
    stop_for(child.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
      (void)inject_into(stop, child.pid())->call(SYS_getpid, {});
      kill(child.pid(), SIGUSR1);
    });
    const Outcome out = child.outcome();
    EXPECT_EQ(out.result, -1);
    EXPECT_EQ(out.error, EINTR);
    EXPECT_EQ(out.handled, 1);
  }
}

TEST(Injection, ItsMemoryIsItsOwnAndStays) {
  const Child child([] { return syscall(SYS_pause); });
  (void)child.sleeping_in(SYS_pause);
  const auto stack_of = [&] {
    for (const auto& v : read_maps(child.pid()))
      if (v.kind == VmaKind::stack) {
        std::vector<std::byte> bytes(v.end - v.begin);
        EXPECT_TRUE(read_memory(child.pid(), v.begin, bytes.data(), bytes.size()));
        return bytes;
      }
    return std::vector<std::byte>();
  };
  const auto before = stack_of();
  uint64_t frames[2] = {};
  for (uint64_t& frame : frames)
    stop_for(child.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
      const auto injector = inject_into(stop, child.pid());
      EXPECT_EQ(injector->call(SYS_getpid, {}), child.pid());
      frame = injector->frame_address();
    });
  EXPECT_EQ(frames[0], frames[1]);
  EXPECT_EQ(stack_of(), before);
  const auto area = InjectionArea::find(child.pid());
  ASSERT_TRUE(area);
  EXPECT_TRUE(area->range().contains(frames[0]));
}

TEST(KernelRanges, WhatACallReadsAnewStays) {
  static std::vector<pollfd> many(2000, pollfd{-1, POLLIN, 0});
  static std::vector<uint32_t> words(4096 * 3);
  struct Waiter {
    uint64_t value, address;
    uint32_t flags, reserved;
  };
  static std::vector<Waiter> waiters;
  for (size_t i = 0; i < 3; ++i) waiters.push_back({0, reinterpret_cast<uint64_t>(&words[i * 4096]), 2, 0});
  const auto kept = [](pid_t pid) {
    std::vector<AddressRange> ranges;
    stop_for(pid, milliseconds(0), [&](StoppedProcesses& stop) {
      for (const auto& t : stop.threads()) add_kernel_ranges(t, ranges);
    });
    return [ranges](const void* p) {
      const auto address = reinterpret_cast<uint64_t>(p);
      return std::any_of(ranges.begin(), ranges.end(), [&](const auto& r) { return r.contains(address); });
    };
  };
  const Child polls([] { return syscall(SYS_poll, many.data(), many.size(), -1); });
  (void)polls.sleeping_in(SYS_poll);
  const auto of_poll = kept(polls.pid());
  EXPECT_TRUE(of_poll(&many.front()) && of_poll(&many[1000]) && of_poll(&many.back()));
  EXPECT_FALSE(of_poll(&words[4096]));
  const Child waits([] { return syscall(kSysFutexWaitv, waiters.data(), waiters.size(), 0, nullptr, 0); });
  (void)waits.sleeping_in(kSysFutexWaitv);
  const auto of_futex = kept(waits.pid());
  EXPECT_TRUE(of_futex(waiters.data()) && of_futex(&words[0]) && of_futex(&words[4096]) &&
              of_futex(&words[8192]));
  // The program's sizes are not believed without bounds.
  const Child lies([] { return syscall(SYS_epoll_wait, epoll_create1(0), many.data(), 100'000'000, -1); });
  (void)lies.sleeping_in(SYS_epoll_wait);
  std::vector<AddressRange> ranges;
  stop_for(lies.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
    for (const auto& t : stop.threads()) add_kernel_ranges(t, ranges);
  });
  for (const auto& r : ranges) EXPECT_LE(r.end - r.begin, (1u << 20) + 2 * kPageBytes);
}

// A cgroup of its own in a hierarchy that can freeze.
class Freezer {
 public:
  explicit Freezer(bool unified) : unified_(unified) {
    for (const char* root : {"/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/freezer"}) {
      const std::string marker = unified ? "/cgroup.controllers" : "/freezer.state";
      const std::string path = std::string(root) + "/medes-test-" + std::to_string(getpid());
      std::error_code failed;
      if (unified && !std::filesystem::exists(std::string(root) + marker)) continue;
      if (!std::filesystem::create_directory(path, failed)) continue;
      if (std::filesystem::exists(path + (unified ? "/cgroup.freeze" : marker))) {
        path_ = path;
        return;
      }
      std::filesystem::remove(path, failed);
    }
  }
  ~Freezer() {
    if (path_.empty()) return;
    set(false);
    for (int i = 0; i < 1000 && rmdir(path_.c_str()) != 0; ++i) std::this_thread::sleep_for(milliseconds(1));
  }
  Freezer(const Freezer&) = delete;
  Freezer& operator=(const Freezer&) = delete;
  bool is_there() const { return !path_.empty(); }
  void take(pid_t pid) const { std::ofstream(path_ + "/cgroup.procs") << pid << std::flush; }
  void set(bool frozen) const {
    if (unified_)
      std::ofstream(path_ + "/cgroup.freeze") << (frozen ? "1" : "0") << std::flush;
    else
      std::ofstream(path_ + "/freezer.state") << (frozen ? "FROZEN" : "THAWED") << std::flush;
  }

 private:
  const bool unified_;
  std::string path_;
};

TEST(Freezers, InTheMiddleOfCallsTheThreadIsPutBack) {
  for (bool unified : {true, false}) {
    const Freezer freezer(unified);
    if (!freezer.is_there()) continue;
    SCOPED_TRACE(unified ? "v2" : "v1");
    const Child child([] {
      epoll_event event;
      return epoll_wait(epoll_create1(0), &event, 1, kHourMs);
    });
    (void)child.sleeping_in(SYS_epoll_wait);
    freezer.take(child.pid());
    EXPECT_EQ(frozen_cgroup_of(child.pid()), "");
    stop_for(child.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
      const auto injector = inject_into(stop, child.pid());
      freezer.set(true);
      EXPECT_NE(frozen_cgroup_of(child.pid()), "");
      Code code = Code::ok;
      std::string why;
      for (int i = 0; i < 100 && code == Code::ok; ++i) try {
          EXPECT_EQ(injector->call(SYS_getpid, {}), child.pid());
        } catch (const Error& e) {
          code = e.code, why = e.what();
        }
      EXPECT_EQ(code, Code::busy);
      EXPECT_NE(why.find("is frozen"), std::string::npos) << why;
      EXPECT_THROW((void)injector->call(SYS_getpid, {}), Error);
    });
    freezer.set(false);
    // Where it could not even be stopped (v1), it finds back through its frame, and nobody disturbs it.
    bool again = true;
    if (unified) (void)child.sleeping_in(SYS_epoll_wait);
    for (int tries = 0; again && tries < 5000; ++tries) {
      again = false;
      stop_for(child.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
        try {
          EXPECT_EQ(inject_into(stop, child.pid())->call(SYS_getpid, {}), child.pid());
        } catch (const Error& e) {
          EXPECT_EQ(e.code, Code::busy);
          EXPECT_NE(std::string(e.what()).find("injected before"), std::string::npos) << e.what();
          again = !unified;
        }
      });
    }
    EXPECT_FALSE(again);
    (void)child.sleeping_in(SYS_epoll_wait);
    EXPECT_FALSE(child.has_ended());
  }
}

TEST(Freezers, BeforeTheStopTheyAreNamed) {
  const Freezer freezer(false);
  if (!freezer.is_there()) GTEST_SKIP() << "no v1 freezer here";
  const Child child([] { return syscall(SYS_pause); });
  (void)child.sleeping_in(SYS_pause);
  freezer.take(child.pid());
  freezer.set(true);
  std::string why;
  run_as_tracer([&] {
    const pid_t pids[] = {child.pid()};
    try {
      const StoppedProcesses stop(pids, steady_clock::now() + milliseconds(100));
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Code::busy);
      why = e.what();
    }
  });
  EXPECT_NE(why.find("is frozen"), std::string::npos) << why;
  freezer.set(false);
  stop_for(child.pid(), milliseconds(0));
  EXPECT_FALSE(child.has_ended());
}

TEST(Processes, LiveAsLongAsOneOfTheirThreads) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer makes no thread after a fork";
#endif
  const Child child([] {
    std::thread([] {
      for (;;) pause();
    }).detach();
    return syscall(SYS_exit, 0);  // of this thread alone
  });
  for (int i = 0; i < 5000 && read_stat(child.pid()).state != 'Z'; ++i)
    std::this_thread::sleep_for(milliseconds(1));
  ASSERT_EQ(read_stat(child.pid()).state, 'Z');
  EXPECT_TRUE(is_alive(child.pid()));
  EXPECT_NE(live_thread(child.pid()), child.pid());
  EXPECT_FALSE(read_maps(child.pid()).empty());
  kill(child.pid(), SIGKILL);
  for (int i = 0; i < 5000 && is_alive(child.pid()); ++i) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_FALSE(is_alive(child.pid()));
}

}  // namespace
}  // namespace medes
