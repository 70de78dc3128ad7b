// Is a process held by a freezer (docker pause, systemctl freeze)? Then no injected call of ours gets to run.
#pragma once

#include <sys/types.h>

#include <string>

#include "common/error.h"

namespace medes {

// The path of the frozen cgroup (v1 freezer or v2) that holds the process, its own or one above it; empty
// when none does, or it cannot be told.
std::string frozen_cgroup_of(pid_t pid);

Error frozen_error(pid_t pid, const std::string& cgroup);  // busy
void require_thawed(pid_t pid);                            // throws that

}  // namespace medes
