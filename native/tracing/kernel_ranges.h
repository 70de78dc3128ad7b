// What of a stopped thread's memory must stay where it is.
#pragma once

#include <vector>

#include "image/foreign_memory.h"
#include "tracing/tracee.h"

namespace medes {

// Address ranges of a thread that the kernel itself reads or writes without raising an event, or that it
// needs at once when the thread is let go: restartable-sequence area, thread control block, robust list, top
// of the stack, and whatever the arguments of the call that it sleeps in point at. To be asked before calls
// are injected into the thread. `memory` is its process's. Throws process_gone.
void add_kernel_ranges(const Tracee& thread, const ForeignMemory& memory, std::vector<AddressRange>& out);

}  // namespace medes
