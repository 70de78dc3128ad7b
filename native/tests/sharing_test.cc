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
#include <string>

#include "common/error.h"
#include "memory/memory_room.h"
#include "memory/memory_sharers.h"
#include "memory/proc.h"

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
  EXPECT_NO_THROW(check_memory_not_shared(pids));
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
    check_memory_not_shared(pids);
    ADD_FAILURE() << "not found";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Code::unsupported);
    EXPECT_NE(std::string(e.what()).find(std::to_string(child)), std::string::npos) << e.what();
  }
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

}  // namespace
}  // namespace medes
