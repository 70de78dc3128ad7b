#include "process/stopped_process.h"

#include <sys/mman.h>

#include <algorithm>

#include "common/error.h"
#include "image/foreign_memory.h"
#include "process/give_back.h"
#include "process/move_out.h"
#include "procfs/proc.h"
#include "tracing/frozen.h"
#include "tracing/kernel_ranges.h"

namespace medes {

StoppedProcess StoppedProcess::find(uint32_t index, const ProcessLayout& layout) {
  StoppedProcess p;
  p.index = index, p.pid = layout.pid;
  if (p.pid <= 0) throw Error(Code::invalid_argument, "the image is not of a process", p.object());
  if (process_start_time(p.pid) != layout.start_time_ticks)
    throw Error(Code::process_gone, "the process has exited; its number belongs to another", p.object());
  require_thawed(p.pid);
  p.gadgets = find_gadgets(p.pid, layout.vmas);
  p.area = InjectionArea::find(p.pid);
  return p;
}

void StoppedProcess::take(const StoppedProcesses& stop, TimePoint deadline,
                          const std::atomic<bool>* abandoned) {
  const auto threads = stop.threads_of(pid);
  if (threads.empty()) throw Error(Code::process_gone, "the process has exited", object());
  if (threads.front().tid != pid && live_thread(pid) != pid)  // throws when all of it is being killed
    throw Error(Code::unsupported, "its main thread has exited while others run on", object());
  vmas = read_maps(pid);
  // Before calls are injected: what the thread that makes them sleeps in is to be seen, too.
  {
    const ForeignMemory memory(pid);
    for (const auto& t : threads) add_kernel_ranges(t, memory, keep);
  }
  injector = inject(threads.front(), gadgets, vmas, area, deadline, abandoned);
  vmas = read_maps(pid);
}

void StoppedProcess::find_what_stays(const StoppedProcesses& stop, const Uffd& uffd, UffdRecord& record,
                                     std::vector<std::string>& notes) {
  const auto threads = stop.threads_of(pid);
  // Stopped as they are by somebody else's signal they need none of ours, and would not be continued by us.
  const bool group_stopped =
      std::any_of(threads.begin(), threads.end(), [](const Tracee& t) { return t.group_stopped; });
  if (threads.size() > 1 && !group_stopped) injector->has_others(record.stop);
  if (GiveBack(*this, uffd, record.fd, notes).unmap_left()) vmas = read_maps(pid);
  if (const auto found = InjectionArea::find(pid)) keep.push_back(found->range());
  keep_pinned(threads, notes);
  std::sort(keep.begin(), keep.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
}

// Where something may pin memory, each page is asked for as it goes (process/move_out.h), which only works
// where the program may write: what is read-only by now may have been pinned before.
void StoppedProcess::keep_pinned(std::span<const Tracee> threads, std::vector<std::string>& notes) {
  const Pinned pinned = find_pinned(pid, vmas, notes);
  for (const auto& r : pinned.ranges)
    keep.push_back({r.begin / kPageBytes * kPageBytes, (r.end + kPageBytes - 1) / kPageBytes * kPageBytes});
  may_pin = pinned.may_pin;
  if (may_pin.empty() && uses_io_uring(*injector, threads)) may_pin = "io_uring";
  if (may_pin.empty()) return;
  if (!can_move_out())
    throw Error(Code::unsupported,
                "its memory may be pinned (" + may_pin + "), and the kernel cannot tell which", object(),
                "Linux 6.8 or later is needed");
  for (const auto& v : vmas)
    if (is_anonymous(v) && (v.prot & PROT_WRITE) == 0) keep.push_back({v.begin, v.end});
}

bool StoppedProcess::keeps(uint64_t address, size_t& from) const {
  while (from < keep.size() && keep[from].end <= address) ++from;
  bool stays = false;  // ranges may overlap: look at all that begin at or before this page
  for (size_t k = from; k < keep.size() && keep[k].begin <= address; ++k) stays |= keep[k].contains(address);
  return stays;
}

}  // namespace medes
