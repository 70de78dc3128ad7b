// Where a restore op puts rebuilt pages: a sandbox's userfaultfd (live driver) or plain memory (image
// driver, tests).
#pragma once

#include <cstdint>

#include "common/bytes.h"
#include "common/error.h"

namespace medes {

class Placer {
 public:
  virtual ~Placer() = default;
  // Places `count` rebuilt pages that are neighbours both in the image and in the address space.
  // ok also when pages turned out to be there already (or their range was unmapped meanwhile).
  virtual Code place(uint64_t first_page, uint64_t count, const std::byte* bytes) = 0;
};

}  // namespace medes
