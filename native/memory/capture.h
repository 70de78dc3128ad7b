// Copies the private memory of a sandbox's processes into an image.
#pragma once

#include <sys/types.h>

#include <memory>
#include <span>

#include "memory/image.h"

namespace medes {

// Captures all processes (copy of every private resident page that can go) with them running; pages torn by
// concurrent writes are found at eviction. Throws process_gone, permission_denied, traced, limit_exceeded,
// unsupported (a device or asynchronous I/O owns pages of the process).
std::shared_ptr<MemoryImage> capture(std::span<const pid_t> pids);

}  // namespace medes
