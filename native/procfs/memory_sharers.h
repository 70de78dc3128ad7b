// Processes that run on one memory without being threads of one process (clone with CLONE_VM, vfork).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace medes {

// Throws where one of `pids` shares its memory with another of them or with any process of this machine that
// we can see: one would write while the other stands still. busy for a vfork that has not ended, else
// unsupported. Those that are gone, or refuse to be compared, are passed over. A process is compared by a
// thread that lives: a main thread that has exited has no memory.
class MemorySharers {
 public:
  // Looks at all processes: 3 to 5 us each (docs/live-driver.md).
  explicit MemorySharers(std::span<const pid_t> pids);

  // Looks at those that were born since, which is all there is to do once `pids` stand still: only who has a
  // memory makes a sharer of it, and the kernel gives out process ids in a row. (Not those that a program
  // with CAP_CHECKPOINT_RESTORE chooses itself.)
  void look_again();

 private:
  struct Place {
    std::vector<pid_t>::iterator at;  // in sorted_
    std::optional<pid_t> same;        // who has this memory already
  };

  bool has_memory(pid_t tid) const;
  std::optional<pid_t> thread_with_memory(pid_t pid) const;
  Place place_of(pid_t thread);
  void look_at(pid_t pid);
  void look_at_all();

  std::vector<pid_t> known_;      // ascending
  std::vector<pid_t> sorted_;     // a thread of each, by the kernel's order of their memories
  std::optional<pid_t> without_;  // a thread that never has memory
  std::optional<uint32_t> last_pid_;
};

}  // namespace medes
