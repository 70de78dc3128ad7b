// Decorator for tests: the faults a page transport can show, from a seed.
#pragma once

#include <cstdint>
#include <memory>

#include "transport/page_reader.h"

namespace medes {

struct FailurePlan {
  uint64_t seed = 1;
  double drop = 0;             // probability, per batch, that it never completes (its waiter's time runs out)
  double fail = 0;             // per read: peer_unreachable
  double corrupt = 0;          // per read: one bit flipped, status ok; what checksums above must catch
  bool corrupt_found = false;  // such reads end with `corrupt` instead, as where a reader checks digests
  uint32_t delay_max_us = 0;   // per batch: uniform delay before it completes
  bool reorder = false;        // reads reach the peer one by one, in random order
  uint64_t die_after_reads = 0;  // from then on peer_unreachable, also in mid-batch; 0 = never
};

std::shared_ptr<PageReader> make_failing_reader(std::shared_ptr<PageReader> inner, FailurePlan plan);

}  // namespace medes
