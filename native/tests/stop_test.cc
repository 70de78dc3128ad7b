// Stops of real processes: waits in many threads, frames that lie in nobody's way, freezers.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "common/error.h"
#include "procfs/proc.h"
#include "store/sandbox_file.h"
#include "tests/stopped_child.h"
#include "tracing/frozen.h"
#include "tracing/injection_area.h"
#include "tracing/kernel_ranges.h"
#include "tracing/process_bytes.h"
#include "tracing/system_calls.h"
#include "tracing/tracee.h"

namespace medes {
namespace {

// Threads wait in calls that the kernel does not restart; one of them has children, each of which ends when
// it reads a byte. Returns when a wait has ended.
long wait_in_many_threads(int bytes, int children) {
  constexpr int kWaiters = 60;
  static int ended = eventfd(0, 0);
  const auto wait = [] {
    epoll_event event;
    (void)epoll_wait(epoll_create1(0), &event, 1, -1);
    const uint64_t one = 1;
    (void)!write(ended, &one, sizeof one);
  };
  for (int i = 0; i < kWaiters; ++i) std::thread(wait).detach();
  std::thread([&] {
    for (int i = 0; i < children; ++i)
      if (fork() == 0) {
        char byte;
        _exit(static_cast<int>(read(bytes, &byte, 1)));
      }
    wait();
  }).detach();
  for (int i = 0; i < kWaiters; ++i) std::thread(wait).detach();
  uint64_t count = 0;
  return read(ended, &count, sizeof count);
}

bool all_sleep(pid_t pid, size_t threads) {
  const auto tids = threads_of(pid);
  return tids.size() == threads && std::all_of(tids.begin(), tids.end(), [pid](pid_t tid) {
           const std::string folder = "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid);
           return parse_stat(read_proc_file(folder + "/stat", pid, 4096), folder).state == 'S';
         });
}

// A signal that does nothing is none for who is not traced; for who is, the kernel has some thread look at
// it.
TEST(Stops, SignalsThatDoNothingEndNoWait) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer makes no thread after a fork";
#endif
  for (const bool of_children : {false, true}) {
    SCOPED_TRACE(of_children ? "SIGCHLD" : "SIGURG");
    constexpr int kChildren = 200, kStops = 30;
    int bytes[2];
    ASSERT_EQ(pipe(bytes), 0);
    const Child child([&] {
      close(bytes[1]);  // theirs end with the test
      return wait_in_many_threads(bytes[0], of_children ? kChildren : 0);
    });
    for (int i = 0; i < 5000 && !all_sleep(child.pid(), 122); ++i)
      std::this_thread::sleep_for(milliseconds(1));
    std::jthread signals([&](const std::stop_token& over) {
      for (int sent = 0; !over.stop_requested();) {
        if (!of_children)
          kill(child.pid(), SIGURG);
        else if (sent < kChildren && ++sent)
          (void)!write(bytes[1], "", 1);
        std::this_thread::sleep_for(std::chrono::microseconds(of_children ? 2000 : 0));
      }
    });
    int stops = 0;
    for (; stops < kStops && !child.has_ended(); ++stops) {
      const bool injects = stops % 2 == 0;
      stop_for(child.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
        if (injects) (void)inject_into(stop, child.pid())->call(SYS_getpid, {});
      });
    }
    signals = {};
    EXPECT_FALSE(child.has_ended()) << "after " << stops << " stops";
    close(bytes[0]);
    close(bytes[1]);
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
      for (const auto& t : stop.threads()) add_kernel_ranges(t, ForeignMemory(t.pid), ranges);
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
    for (const auto& t : stop.threads()) add_kernel_ranges(t, ForeignMemory(t.pid), ranges);
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

// Whatever its threads do, it gets no further when its agent dies: also while some of them are ending, of
// which the kernel tells nothing, or that they are not there.
TEST(Stops, OnDeathWhileThreadsEnd) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer makes no thread after a fork";
#endif
  constexpr int kStops = 3000;
  const Child child([] {
    for (int i = 0; i < 2; ++i)
      std::thread([] {
        for (;;) std::thread([] {}).join();
      }).detach();
    return static_cast<long>(pause());
  });
  (void)child.sleeping_in(SYS_pause);
  int stops = 0;
  for (int i = 0; i < kStops; ++i)
    run_as_tracer([&] {
      const auto held = hold_threads(child.pid(), std::chrono::microseconds(60));
      if (!held) return;
      uint32_t note = kNotStopped;
      {
        const StopOnDeath stop(child.pid(), *held, note);
        EXPECT_EQ(note, kStopped);
      }
      EXPECT_EQ(note, kNotStopped);
      ++stops;
    });
  EXPECT_GT(stops, kStops / 2);
  EXPECT_FALSE(child.has_ended());
}

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
