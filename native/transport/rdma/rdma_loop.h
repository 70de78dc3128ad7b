// What bounds RDMA page reads, for `medes bench transport`: the same READs on bare verbs.
#pragma once

#include <memory>
#include <span>

#include "transport/rdma/rdma_device.h"
#include "transport/read_loop.h"

namespace medes {

// One queue pair to a slab served by this device. Each batch is the READs that a page reader would make of it
// (cut at the reader's chunk, as many outstanding), landing in registered memory, polled for without sleep;
// `depth` batches are in flight. The last batch is verified. Throws unsupported, io, corrupt.
LoopTimes time_verbs(std::shared_ptr<Slab> slab, std::span<const uint64_t> offsets, uint32_t length,
                     size_t rounds, size_t depth);

}  // namespace medes
