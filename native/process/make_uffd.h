// Opens a userfaultfd inside a stopped process.
#pragma once

#include <sys/types.h>

#include "tracing/tracee.h"

namespace medes {

// The new descriptor's number in the process. Where the process itself has no right to userfaultfd (a
// container without CAP_SYS_PTRACE), the agent hands it an open /dev/userfaultfd over a socket made for the
// purpose. Throws permission_denied, process_gone, io.
int make_userfaultfd(Injector& injector, pid_t pid);

}  // namespace medes
