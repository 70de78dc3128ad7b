// What others see of a process's memory, share of it, or limit it to.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "common/error.h"
#include "procfs/memory_room.h"
#include "procfs/memory_sharers.h"
#include "procfs/proc.h"
#include "tests/temporary_folder.h"

namespace medes {
namespace {

TEST(Arguments, LieWhereTheKernelShowsThem) {
  const auto ranges = argument_ranges(getpid());
  ASSERT_EQ(ranges.size(), 2u);
  const std::string shown = read_proc_file("/proc/self/cmdline", getpid());
  ASSERT_EQ(ranges[0].end - ranges[0].begin, shown.size());
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(ranges[0].begin), shown.size()), shown);
}

TEST(MappingFlags, FindWhatIsWipedAtFork) {
  void* const p = mmap(nullptr, 4 * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(p, MAP_FAILED);
  ASSERT_EQ(madvise(p, 2 * kPageBytes, MADV_WIPEONFORK), 0);
  const auto begin = reinterpret_cast<uint64_t>(p);
  const auto wiped = ranges_with_flag(getpid(), "wf");
  const auto holds = [&](uint64_t address) {
    return std::any_of(wiped.begin(), wiped.end(),
                       [&](const AddressRange& r) { return r.contains(address); });
  };
  EXPECT_TRUE(holds(begin));
  EXPECT_FALSE(holds(begin + 2 * kPageBytes));
  munmap(p, 4 * kPageBytes);
}

// A process on this memory that sleeps until it is killed.
pid_t sleeper() {
  alignas(16) static std::array<char, 65536> stack;
  const auto sleep = [](void*) -> int {
    for (;;) syscall(SYS_pause);
  };
  return clone(sleep, stack.data() + stack.size(), CLONE_VM | SIGCHLD, nullptr);
}

void end(pid_t pid) {
  kill(pid, SIGKILL);
  (void)waitpid(pid, nullptr, 0);
}

TEST(MemorySharers, AForkedCopyIsNone) {
  const pid_t child = fork();
  if (child == 0)
    for (;;) pause();
  ASSERT_GT(child, 0);
  const pid_t pids[] = {getpid(), child};
  EXPECT_NO_THROW(MemorySharers{pids});
  end(child);
}

TEST(MemorySharers, AreFoundAmongAllProcesses) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer knows no process on another's memory";
#else
  const pid_t child = sleeper();
  ASSERT_GT(child, 0);
  const pid_t pids[] = {getpid()};
  try {
    MemorySharers{pids};
    ADD_FAILURE() << "not found";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Code::unsupported);
    EXPECT_NE(std::string(e.what()).find(std::to_string(child)), std::string::npos) << e.what();
  }
  end(child);
#endif
}

TEST(MemorySharers, AreFoundWhenTheyWereBornSince) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer knows no process on another's memory";
#else
  const pid_t pids[] = {getpid()};
  MemorySharers sharers(pids);
  EXPECT_NO_THROW(sharers.look_again());
  const pid_t child = sleeper();
  ASSERT_GT(child, 0);
  EXPECT_THROW(sharers.look_again(), Error);
  end(child);
  EXPECT_NO_THROW(sharers.look_again());
#endif
}

TEST(MemorySharers, ThreadsBornSinceAreNone) {
  const pid_t pids[] = {getpid()};
  MemorySharers sharers(pids);
  int stay[2];
  ASSERT_EQ(pipe(stay), 0);
  std::thread born([fd = stay[0]] {
    char end = 0;
    (void)!read(fd, &end, 1);
  });
  EXPECT_NO_THROW(sharers.look_again());
  close(stay[1]);
  born.join();
  close(stay[0]);
}

// A forked process of two threads, the first of which has exited. `then` runs in it before.
pid_t leaderless(void (*then)()) {
  int ready[2];
  if (pipe(ready) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    then();
    std::thread([fd = ready[1]] {
      (void)!write(fd, "r", 1);
      for (;;) pause();
    }).detach();
    syscall(SYS_exit, 0);
  }
  close(ready[1]);
  char byte = 0;
  const bool told = read(ready[0], &byte, 1) == 1;
  close(ready[0]);
  for (int i = 0; told && i < 5000 && read_stat(child).state != 'Z'; ++i) usleep(1000);
  return told ? child : -1;
}

TEST(MemorySharers, ProcessesWithoutTheirMainThreadsShareNothing) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer makes no thread after a fork";
#else
  const pid_t first = leaderless([] {}), second = leaderless([] {});
  ASSERT_GT(first, 0);
  ASSERT_GT(second, 0);
  const pid_t pids[] = {first, second};
  EXPECT_NO_THROW(MemorySharers{pids});
  EXPECT_NE(live_thread(first), first);
  kill(first, SIGKILL);
  // As soon as the thread has seen the signal, and long before it is reaped.
  for (int i = 0; i < 5000 && is_alive(first); ++i) usleep(1000);
  EXPECT_THROW((void)live_thread(first), Error) << "what is being killed lives no more";
  (void)waitpid(first, nullptr, 0);
  end(second);
#endif
}

TEST(MemorySharers, AreFoundThoughTheirMainThreadHasExited) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer knows no process on another's memory";
#else
  // On its stack below: a thread that stays, while the first one of that process exits.
  static std::array<char, 65536> leader_stack, thread_stack;
  const auto stay = [](void*) -> int {
    for (;;) syscall(SYS_pause);
  };
  static int (*const stays)(void*) = stay;
  const auto lead = [](void*) -> int {
    constexpr int kThread = CLONE_VM | CLONE_THREAD | CLONE_SIGHAND | CLONE_FS | CLONE_FILES;
    clone(stays, thread_stack.data() + thread_stack.size(), kThread, nullptr);
    syscall(SYS_exit, 0);
    return 0;
  };
  const pid_t child = clone(lead, leader_stack.data() + leader_stack.size(), CLONE_VM | SIGCHLD, nullptr);
  ASSERT_GT(child, 0);
  for (int i = 0; i < 5000 && read_stat(child).state != 'Z'; ++i) usleep(1000);
  const pid_t pids[] = {getpid()};
  EXPECT_THROW(MemorySharers{pids}, Error);
  end(child);
#endif
}

TEST(MemoryRoom, NothingIsKnownOfAProcessThatIsGone) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_FALSE(MemoryRoom(child).bytes().has_value());
  EXPECT_FALSE(MemoryRoom().bytes().has_value());
}

TEST(MemoryRoom, AskedForLessItSaysTheSame) {
  const testing::TemporaryFolder folder;
  const auto write = [&](const char* name, const char* text) {
    std::filesystem::create_directories((folder.path() / name).parent_path());
    std::ofstream(folder.path() / name) << text;
  };
  write("7/cgroup", "0::/box\n");
  write("meminfo", "SwapFree: 1 kB\n");
  write("box/memory.max", "9000\n");
  write("box/memory.current", "8000\n");
  write("box/memory.stat", "inactive_file 500\n");
  const MemoryRoom room(7, folder.path(), folder.path());
  EXPECT_EQ(room.bytes(), 1000u + 500 + 1024);
  EXPECT_TRUE(room.has(1000));
  EXPECT_TRUE(room.has(1000 + 500 + 1024));
  EXPECT_FALSE(room.has(1000 + 500 + 1025));
}

}  // namespace
}  // namespace medes
