#include "procfs/memory_sharers.h"

#include <linux/kcmp.h>
#include <linux/sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>
#include <vector>

#include "common/error.h"
#include "procfs/proc.h"

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
      const auto call = parse_syscall(read_proc_file(path, pid, 4096));
      if (!call) continue;
      // It waits where nothing interrupts it: clone3, too, sleeps for nothing else.
      if (read_stat(tid).state != 'D') continue;
      if (call->number == SYS_vfork || call->number == SYS_clone3) return true;
      if (call->number == SYS_clone && (call->arguments[0] & CLONE_VFORK) != 0) return true;
    }
  } catch (const Error&) {  // it has ended
  }
  return false;
}

// Of a thread, the process it belongs to; nothing when it has ended.
std::optional<pid_t> process_of(pid_t tid) {
  try {
    const std::string status = read_proc_file("/proc/" + std::to_string(tid) + "/status", tid, 65536);
    if (const auto process = field_of(status, "Tgid")) return static_cast<pid_t>(process);
  } catch (const Error&) {  // it has ended
  }
  return std::nullopt;
}

// `thread` is the one of `other` that was compared.
[[noreturn]] void refuse(pid_t pid, pid_t other, pid_t thread) {
  const std::string object = "pid " + std::to_string(pid);
  // The child may have gone on to its own program, and the parent on its way, since they were compared.
  if (is_in_vfork(pid) || is_in_vfork(other) || compare(pid, thread) != Order::same)
    throw Error(Code::busy, "a vfork is under way: process " + std::to_string(other) + " has its memory",
                object, "try again later");
  throw Error(Code::unsupported, "it shares its memory with process " + std::to_string(other), object,
              "processes made with CLONE_VM cannot be deduplicated");
}

bool shows_memory(pid_t tid) {
  char first = 0;
  const std::string path = "/proc/" + std::to_string(tid) + "/exe";
  return readlink(path.c_str(), &first, 1) >= 0 || errno != ENOENT;
}

// A thread of the kernel, which has no memory. None is to be seen from within most containers.
std::optional<pid_t> kernel_thread() {
  constexpr pid_t kThreadd = 2;
  try {
    if (read_stat(kThreadd).of_kernel && !shows_memory(kThreadd)) return kThreadd;
  } catch (const Error&) {
  }
  return std::nullopt;
}
// The process id that was given out last.
std::optional<uint32_t> last_pid() {
  try {
    uint32_t last = 0;
    const std::string text = read_proc_file("/proc/loadavg", 0, 4096);
    if (sscanf(text.c_str(), "%*s %*s %*s %*s %u", &last) == 1) return last;
  } catch (const Error&) {  // all are looked at then
  }
  return std::nullopt;
}

}  // namespace

MemorySharers::MemorySharers(std::span<const pid_t> pids)
    : known_(pids.begin(), pids.end()), without_(kernel_thread()), last_pid_(last_pid()) {
  std::sort(known_.begin(), known_.end());
  for (pid_t pid : pids) {
    const auto thread = thread_with_memory(pid);
    if (!thread) continue;
    const Place place = place_of(*thread);
    if (place.same) refuse(*place.same, pid, *thread);
    sorted_.insert(place.at, *thread);
  }
  look_at_all();
}

void MemorySharers::look_again() {
  constexpr uint32_t kFewer = 1000;  // than there are processes, where the difference counts
  const auto before = last_pid_;
  last_pid_ = last_pid();
  if (!before || !last_pid_ || *last_pid_ < *before || *last_pid_ - *before > kFewer) return look_at_all();
  for (uint32_t pid = *before + 1; pid <= *last_pid_; ++pid) look_at(static_cast<pid_t>(pid));
}

// The kernel gives those without memory a place in its order as well, the same for all of them: comparing
// costs a quarter of asking /proc.
bool MemorySharers::has_memory(pid_t tid) const {
  if (!without_) return shows_memory(tid);
  const Order order = compare(tid, *without_);
  return order == Order::unknown ? shows_memory(tid) : order != Order::same;
}

// Of a process, the thread that shows its memory. Nothing for one that has none (any more).
std::optional<pid_t> MemorySharers::thread_with_memory(pid_t pid) const {
  if (has_memory(pid)) return pid;
  struct stat threads{};
  const std::string path = "/proc/" + std::to_string(pid) + "/task";
  constexpr nlink_t kOfOneThread = 3;
  if (stat(path.c_str(), &threads) != 0 || threads.st_nlink <= kOfOneThread) return std::nullopt;
  try {
    for (pid_t tid : threads_of(pid))
      if (tid != pid && has_memory(tid)) return tid;
  } catch (const Error&) {  // it is gone, or not ours to look at
  }
  return std::nullopt;
}

MemorySharers::Place MemorySharers::place_of(pid_t thread) {
  auto begin = sorted_.begin(), end = sorted_.end();
  while (begin != end) {
    const auto middle = begin + (end - begin) / 2;
    const Order order = compare(thread, *middle);
    if (order == Order::same) return {middle, *middle};
    if (order == Order::before)
      end = middle;
    else
      begin = middle + 1;
  }
  return {begin, std::nullopt};
}

void MemorySharers::look_at(pid_t pid) {
  if (std::binary_search(known_.begin(), known_.end(), pid)) return;
  const auto thread = thread_with_memory(pid);
  if (!thread) return;
  const auto same = place_of(*thread).same;
  if (!same) return;
  // Among those born since are threads of the known.
  const auto process = process_of(pid);
  if (process && !std::binary_search(known_.begin(), known_.end(), *process))
    refuse(*same, *process, *thread);
}

void MemorySharers::look_at_all() {
  for (pid_t pid : all_processes()) look_at(pid);
}

}  // namespace medes
