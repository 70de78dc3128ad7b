// Processes that run on one memory without being threads of one process (clone with CLONE_VM, vfork).
#pragma once

#include <sys/types.h>

#include <span>

namespace medes {

// Throws where one of `pids` shares its memory with another of them or with any process of this machine that
// we can see: one would write while the other stands still. busy for a vfork that has not ended, else
// unsupported. Those that are gone, or refuse to be compared, are passed over. Some 1.5 us for each process
// of the machine.
void check_memory_not_shared(std::span<const pid_t> pids);

}  // namespace medes
