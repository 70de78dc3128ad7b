// Huge pages of a sandbox: eviction gives them up and userfaultfd can only place small ones, so that a
// restored program would run with more TLB misses than before. They are joined again when the restore is
// over.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

#include "image/image.h"
#include "procfs/pagemap.h"

namespace medes {

struct HugePages {
  pid_t pid = 0;
  uint64_t start_time_ticks = 0;     // the process meant, should its number be another's by now
  std::vector<AddressRange> ranges;  // multiples of 2 MiB
};

// What of `huge` (as the page map tells, Pagemap::private_pages) lies in `ranges`; both ascending.
std::vector<AddressRange> huge_ranges(std::span<const PageSpan> huge, std::span<const AddressRange> ranges);

// (blocks, some 300 us a huge page) Joins each 2 MiB that are wholly present; whatever the program has
// changed, given back or shared meanwhile stays as it is. Returns how many bytes are huge again (before
// Linux 6.1 always 0). Never throws: small pages are right, too.
uint64_t join_huge_pages(const HugePages& huge);

}  // namespace medes
