#include "memory/memory_sharers.h"

#include <linux/kcmp.h>
#include <linux/sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "common/error.h"
#include "memory/proc.h"

namespace medes {
namespace {

enum class Order : uint8_t { same, before, after, unknown };

// The kernel's own order of memories, the same for as long as they exist.
Order compare(pid_t a, pid_t b) {
  switch (syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0)) {
    case 0: return Order::same;
    case 1: return Order::before;
    case 2: return Order::after;
    default: return Order::unknown;
  }
}

// Whether a thread of the process waits for a vfork's child, which has its memory until it execs or ends.
bool is_in_vfork(pid_t pid) {
  try {
    for (pid_t tid : threads_of(pid)) {
      const std::string path = "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/syscall";
      long number = 0;
      unsigned long long flags = 0;
      if (sscanf(read_proc_file(path, pid, 4096).c_str(), "%ld %llx", &number, &flags) != 2) continue;
      // It waits where nothing interrupts it: clone3, too, sleeps for nothing else.
      if (read_stat(tid).state != 'D') continue;
      if (number == SYS_vfork || number == SYS_clone3) return true;
      if (number == SYS_clone && (flags & CLONE_VFORK) != 0) return true;
    }
  } catch (const Error&) {  // it has ended
  }
  return false;
}

[[noreturn]] void refuse(pid_t pid, pid_t other) {
  const std::string object = "pid " + std::to_string(pid);
  if (is_in_vfork(pid) || is_in_vfork(other))
    throw Error(Code::busy, "a vfork is under way: process " + std::to_string(other) + " has its memory",
                object, "try again later");
  throw Error(Code::unsupported, "it shares its memory with process " + std::to_string(other), object,
              "processes made with CLONE_VM cannot be deduplicated");
}

// By the kernel's order of their memories.
class Memories {
 public:
  // Where `pid` belongs; refuses it when its memory is there already.
  std::vector<pid_t>::iterator place_of(pid_t pid) {
    auto begin = sorted_.begin(), end = sorted_.end();
    while (begin != end) {
      const auto middle = begin + (end - begin) / 2;
      const Order order = compare(pid, *middle);
      if (order == Order::same) refuse(*middle, pid);
      if (order == Order::before)
        end = middle;
      else
        begin = middle + 1;
    }
    return begin;
  }
  void add(pid_t pid) { sorted_.insert(place_of(pid), pid); }

 private:
  std::vector<pid_t> sorted_;
};

}  // namespace

void check_memory_not_shared(std::span<const pid_t> pids) {
  Memories memories;
  for (pid_t pid : pids) memories.add(pid);
  const std::vector<pid_t> known(pids.begin(), pids.end());
  for (pid_t pid : all_processes())
    if (std::find(known.begin(), known.end(), pid) == known.end()) (void)memories.place_of(pid);
}

}  // namespace medes
