// Pages that processes share copy-on-write, since a fork or because KSM merged them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

#include "image/image.h"
#include "procfs/pagemap.h"

namespace medes {

// A process that gets such a page back has a copy of its own: the kernel lets nobody put one anonymous page
// into two processes. So giving it up saves a page while the sandbox is out, and from then on costs one for
// each sharer but the first; and it saves nothing where somebody outside the sandbox holds the page too.
struct ForkShared {
  ForkSharedPages pages;
  std::vector<std::vector<AddressRange>> stay;  // by process, ascending, disjoint
};

// Of `spans` (by process, ascending), pages that stay: those mapped by processes other than `pids`, and those
// that more than `fork_sharers_max` of them map. Where the kernel does not show page frames (CAP_SYS_ADMIN)
// it still tells whether a page is shared: with 1 all such pages stay, each counted once a process, and with
// more none. Throws process_gone, permission_denied. Costs 8 B read a page, and as much again for each that
// is shared.
ForkShared find_fork_shared(std::span<const pid_t> pids, std::span<const std::vector<PageSpan>> spans,
                            uint32_t fork_sharers_max);

}  // namespace medes
