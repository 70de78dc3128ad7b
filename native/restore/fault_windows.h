// How much comes in with a page that a thread waits for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace medes {

// An aligned block, and twice as much each time the next fault comes where the last window ended: a function
// that walks through its data (rows of a table, lines of a corpus) stops at few places. Some walks at once
// are told apart, as threads and structures of arrays make them. Thread safe.
class FaultWindows {
 public:
  static constexpr uint64_t kBlockPages = 8, kMostPages = 64;

  struct Window {
    uint64_t begin = 0, end = 0;  // pages of the image; whole blocks
  };

  // The window for a fault on `page`: its block, first of all.
  Window next(uint64_t page);

 private:
  static constexpr size_t kWalks = 16;
  std::mutex mutex_;
  std::array<Window, kWalks> walks_{};  // the last window of each
  size_t oldest_ = 0;                   // the next to be given up
};

}  // namespace medes
