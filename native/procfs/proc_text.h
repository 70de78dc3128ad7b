// What the texts of /proc say. Pure functions of a text: much of it (names, paths, arguments, numbers of its
// own calls) a hostile process chooses, so every one of them is fuzzed (native/fuzz). What is not understood
// is corrupt where nothing can go on without it, and absent elsewhere.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "image/image.h"

namespace medes {

// /proc/PID/maps. Throws corrupt, limit_exceeded.
std::vector<Vma> parse_maps(const std::string& text);

// /proc/PID/smaps: mappings with a flag among their VmFlags.
std::vector<AddressRange> flagged_ranges(std::string_view smaps, std::string_view flag);

// /proc/PID/stat, or a thread's.
struct ProcessStat {
  char state = 0;
  pid_t parent = 0, session = 0;
  bool dying = false;      // of a thread: it was killed, or is on its way out
  bool of_kernel = false;  // it is a thread of the kernel
  uint64_t user_ticks = 0, start_time_ticks = 0;
  int processor = -1;  // where it ran last
  AddressRange arguments, environment;
};
// Throws corrupt, about `object`.
ProcessStat parse_stat(std::string_view text, const std::string& object);

// The number after "name:" in a status-like file, 0 when there is none (kB are not converted).
uint64_t field_of(const std::string& text, const char* name, int base = 10);

// /proc/PID/task/TID/syscall of one that sleeps in a call; nothing for one that runs, or sleeps elsewhere.
struct SleepingCall {
  long number = 0;
  uint64_t arguments[6] = {}, stack_pointer = 0;
};
std::optional<SleepingCall> parse_syscall(std::string_view text);

// /proc/PID/task/TID/sched, in parts that a kernel may lack.
struct SchedTimes {
  std::optional<int64_t>
      exec_start_ns;  // when a sleeping thread fell asleep, by its processor's clock of tasks
  std::optional<uint64_t> voluntary_switches;
};
SchedTimes parse_sched(std::string_view text);

// /proc/PID/cgroup.
struct CgroupEntry {
  bool unified = false;           // of cgroup v2
  std::string controllers, path;  // ",cpu,memory," for v1, and ",," for v2
};
std::vector<CgroupEntry> parse_cgroups(std::string_view text);

// cgroup.procs: those of our pid namespace.
void append_pids(std::string_view text, std::vector<pid_t>& out);

// memory.stat: the number behind a name, 0 without it. And a file of one number, "max" being the largest.
uint64_t memory_stat_field(std::string_view text, std::string_view name);
uint64_t limit_of(std::string_view text);

// /proc/PID/mountinfo: cgroup hierarchies.
struct CgroupMount {
  bool unified = false;
  std::string controllers;  // as above, of v1
  std::string root, point;  // what of the hierarchy is mounted, and where
};
std::vector<CgroupMount> parse_cgroup_mounts(std::string_view text);

// /proc/PID/fdinfo of an io_uring: whole pages of the buffers that are registered with it.
void append_registered_buffers(std::string_view info, std::vector<AddressRange>& out);
// And of a userfaultfd: faults that nobody has answered.
std::optional<uint64_t> pending_of(std::string_view info);

}  // namespace medes
