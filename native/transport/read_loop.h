// Timed loops for `medes bench transport`: page reads, and what bounds them (memcpy, a bare socket).
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "store/slab.h"
#include "transport/page_reader.h"

namespace medes {

struct LoopTimes {
  std::vector<double> latency_us;  // one a batch, from submit to the last byte
  double wall_s = 0;
  double cpu_s = 0;  // of the whole process
  uint64_t bytes = 0;
};

// Wall and CPU time from its making to into().
class Stopwatch {
 public:
  void into(LoopTimes& out) const;

 private:
  static double cpu_s();
  const double cpu_begin_ = cpu_s();
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// What every loop needs. The checks throw invalid_argument and corrupt.
double since_us(std::chrono::steady_clock::time_point begin);
void check_loop_arguments(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, size_t depth);
void verify_loop(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, const std::byte* got);

// `rounds` batches, each reading `length` bytes at every one of `offsets` of the slab's base, `depth` of them
// in flight. The last batch's bytes are compared with the slab. Throws the code of a failed read, corrupt.
LoopTimes time_reads(PageReader& reader, const Slab& slab, std::span<const uint64_t> offsets, uint32_t length,
                     size_t rounds, size_t depth);

// The same bytes copied from the slab's mapping into `depth` buffers in turn.
LoopTimes time_memcpy(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, size_t rounds,
                      size_t depth);

// A bare TCP connection over loopback, warmed up, to a thread that answers each 64-byte request with the same
// bytes, gathered straight from the slab; `depth` requests are outstanding.
LoopTimes time_socket(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, size_t rounds,
                      size_t depth);

}  // namespace medes
