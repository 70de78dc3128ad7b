// How much comes in with a page that a thread waits for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace medes {

// An aligned block, and twice as much each time the next fault comes where the last ended: a function
// that walks through its data (rows of a table, lines of a corpus) stops at few places. Some walks at once
// are told apart, as threads and structures of arrays make them. Thread safe.
class FaultReadahead {
 public:
  static constexpr uint64_t kBlockPages = 8, kMostPages = 64;

  struct Pages {
    uint64_t begin = 0, end = 0;  // pages of the image; whole blocks
  };

  // The pages that come in with a fault on `page`: its block, first of all.
  Pages next(uint64_t page);

 private:
  static constexpr size_t kWalks = 16;
  std::mutex mutex_;
  std::array<Pages, kWalks> walks_{};  // the last pages of each
  size_t oldest_ = 0;                  // the next to be given up
};

}  // namespace medes
