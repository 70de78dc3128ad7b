// What must outlive the agent of the changes that a program makes to its mappings while pages are out. Lies
// in shared memory, one a process (in the sandbox file) and one a forked child (in its own file).
//
// The kernel tells of such calls by messages that can be read once. They are read straight into the log here,
// and stay until the whole set that they belong to is committed, which one store says: an agent that is
// killed anywhere between leaves either the log, or what came of it. What the program gave back or unmapped
// is `resident` in the page states, and forgetting it twice does no harm; what it moved is listed in one of
// two banks, of which the other is written while this one holds.
#pragma once

#include <linux/userfaultfd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace medes {

// Where a descriptor is held beyond the agent's death: in a keeper's table (serving/keeper.h).
struct Holder {
  int32_t pid = 0;  // of the keeper; 0: nobody
  int32_t fd = -1;
  uint64_t start_time_ticks = 0;
};

struct MovedPages {
  uint64_t origin = 0, address = 0, bytes = 0;  // where the image has them, where they are
};

// Messages of a log from number `first` on were read by the agent whose keeper is `holder`: it has the
// descriptors that they speak of.
struct LogPart {
  uint32_t first = 0;
  uint32_t used = 0;  // 0: there is no such part
  Holder holder;
};

struct ChangeRecord {
  static constexpr uint32_t kMaxMoves = 32;
  static constexpr uint32_t kMaxMessages = 64;
  static constexpr uint32_t kMaxParts = 4;  // agents that were killed over one set, one after the other

  // How the messages of the log are to be applied.
  enum Order : uint32_t {
    open = 0,      // more of the set may wait to be read
    in_order = 1,  // one after the other
    together = 2,  // the whole set, as one
  };

  std::atomic<uint64_t> committed{0};  // sets << 32 | bank << 31 | moves in it, kMaxMoves + 1 for more
  std::atomic<uint32_t> log_set{0};   // the log holds messages of this set: to be committed if it is sets + 1
  std::atomic<uint32_t> order{open};  // of the log
  std::atomic<uint32_t> unlogged{
      0};                    // not 0: messages were read that are not in the log, and may not be committed
  int32_t kept_fd = 0;       // in the keeper that the process's UffdRecord names
  LogPart parts[kMaxParts];  // ascending
  MovedPages moves[2][kMaxMoves];
  uffd_msg messages[kMaxMessages];  // event 0: none

  static constexpr uint64_t pack(uint32_t sets, uint32_t bank, uint32_t moves) {
    return static_cast<uint64_t>(sets) << 32 | static_cast<uint64_t>(bank) << 31 | moves;
  }
  uint32_t sets() const { return static_cast<uint32_t>(committed.load(std::memory_order_acquire) >> 32); }
  uint32_t bank() const { return committed.load(std::memory_order_acquire) >> 31 & 1; }
  uint32_t move_count() const { return committed.load(std::memory_order_acquire) & 0x7fffffff; }
  bool log_is_open() const { return log_set.load(std::memory_order_acquire) == sets() + 1; }
};

static_assert(sizeof(uffd_msg) == 32 && sizeof(MovedPages) == 24 && sizeof(Holder) == 16);
static_assert(sizeof(LogPart) == 24);
static_assert(offsetof(ChangeRecord, parts) == 24);
static_assert(offsetof(ChangeRecord, moves) == 24 + 4 * 24);
static_assert(offsetof(ChangeRecord, messages) == 120 + 2 * 32 * 24);
static_assert(sizeof(ChangeRecord) == 120 + 2 * 32 * 24 + 64 * 32);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

}  // namespace medes
