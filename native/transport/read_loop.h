// Timed loops for `medes bench transport`: page reads, and what bounds them (memcpy, a bare socket).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "store/slab.h"
#include "transport/page_reader.h"

namespace medes {

struct LoopTimes {
  std::vector<double> latency_us;  // one a batch, from submit to the last byte
  double wall_s = 0;
  uint64_t bytes = 0;
};

// `rounds` batches, each reading `length` bytes at every one of `offsets` of the slab's base, `depth` of them
// in flight. The last batch's bytes are compared with the slab. Throws the code of a failed read, corrupt.
LoopTimes time_reads(PageReader& reader, const Slab& slab, std::span<const uint64_t> offsets, uint32_t length,
                     size_t rounds, size_t depth);

// The same bytes copied from the slab's mapping.
LoopTimes time_memcpy(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, size_t rounds);

// A bare TCP connection over loopback to a thread that answers each 64-byte request with `bytes` bytes sent
// straight from the slab; `depth` requests are outstanding.
LoopTimes time_socket(const Slab& slab, uint64_t bytes, size_t rounds, size_t depth);

}  // namespace medes
