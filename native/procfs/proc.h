// What /proc tells of a process: maps, relatives, sizes. All functions throw process_gone for a pid that
// does not exist (or is a zombie where memory is asked for) and permission_denied where the kernel refuses.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "image/image.h"
#include "procfs/proc_text.h"

namespace medes {

// The whole of a /proc (or other unsized) file; throws limit_exceeded above `max_bytes`.
std::string read_proc_file(const std::string& path, pid_t pid, size_t max_bytes = 256u << 20);

std::vector<Vma> read_maps(pid_t pid);

// Roots and all their descendants, roots first, each once.
std::vector<pid_t> process_tree(std::span<const pid_t> roots);
// The processes of a cgroup directory and of the cgroups below it (v1 or v2).
std::vector<pid_t> cgroup_pids(const std::string& path);
std::vector<pid_t> threads_of(pid_t pid);

ProcessStat read_stat(pid_t pid);
// The main thread, or another where that has ended before it: the kernel shows a process's memory and
// descriptors by a thread that lives. Throws process_gone also when the others are being killed.
pid_t live_thread(pid_t pid);
bool is_alive(pid_t pid);               // one of its threads has not ended; never throws process_gone
uint64_t living_start_time(pid_t pid);  // of one that is alive, 0 where none is: most often one look
inline uint64_t process_start_time(pid_t pid) { return read_stat(pid).start_time_ticks; }

// What the processes hold for themselves: pages mapped once, and anonymous pages that they share
// copy-on-write since a fork, each counted once (in parts: a page that a process outside shares too counts
// for its part).
uint64_t private_bytes(std::span<const pid_t> pids);

// The pointer ranges of an image: VMAs merged where gaps are below 1 GB, then further, smallest gap first,
// until at most kMaxRanges are left; [vsyscall] is left out.
AddressSpace space_of(std::span<const ProcessLayout> processes);

// Mappings with a flag of smaps' VmFlags ("lo": mlocked, "wf": wiped at fork). Walks the page tables.
std::vector<AddressRange> ranges_with_flag(pid_t pid, std::string_view flag);
// Where the process's arguments and its environment lie, as the kernel shows them to others.
std::vector<AddressRange> argument_ranges(pid_t pid);
// Every process of the machine that we can see, by the number of its main thread.
std::vector<pid_t> all_processes();
// Those that live, in one look: some 5 us each.
std::vector<std::pair<pid_t, ProcessStat>> living_processes();

// Parts of a process whose pages must not go.
struct Pinned {
  std::vector<AddressRange> ranges;  // mlocked, arguments, buffers that io_uring lists
  // What may hold on to more than these (a ring, a device, a mapped socket): each page must be asked for.
  // Empty: nothing does.
  std::string may_pin;
};
// `notes` receives one line for each reason found. Throws unsupported for what cannot be bounded: devices
// that work on a program's memory (RDMA, VFIO, GPUs), Linux AIO contexts.
Pinned find_pinned(pid_t pid, std::span<const Vma> vmas, std::vector<std::string>& notes);

}  // namespace medes
