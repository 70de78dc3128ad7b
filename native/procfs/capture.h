// The private memory of a sandbox's processes as an image.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <span>

#include "image/image.h"

namespace medes {

// A live image of all processes: what private resident pages they have that can go. They run on; what changes
// under an op is found at eviction. With `fork_sharers_max`, pages that others share stay
// (procfs/fork_shared.h). Throws process_gone, permission_denied, traced, limit_exceeded, unsupported (a
// device or asynchronous I/O owns pages of the process).
std::shared_ptr<MemoryImage> attach(std::span<const pid_t> pids,
                                    std::optional<uint32_t> fork_sharers_max = std::nullopt);

// A copy of it, torn where the processes write meanwhile.
std::shared_ptr<MemoryImage> capture(std::span<const pid_t> pids);

}  // namespace medes
