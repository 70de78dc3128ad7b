#include "restore/fault_readahead.h"

#include <algorithm>

namespace medes {

FaultReadahead::Pages FaultReadahead::next(uint64_t page) {
  const uint64_t block = page / kBlockPages * kBlockPages;
  const std::lock_guard lock(mutex_);
  for (Pages& last : walks_) {
    const uint64_t size = last.end - last.begin;
    // Within: another thread is bringing it.
    if (block >= last.begin && block < last.end) return {block, block + kBlockPages};
    // A stride may leap over a block, or over pages that were there.
    if (size != 0 && block >= last.end && block <= last.end + size)
      return last = {block, block + std::min(2 * size, kMostPages)};
  }
  walks_[oldest_] = {block, block + kBlockPages};
  const Pages found = walks_[oldest_];
  oldest_ = (oldest_ + 1) % kWalks;
  return found;
}

}  // namespace medes
