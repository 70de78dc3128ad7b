// The live driver: the sandbox's processes stay, only their memory goes.
//
//   stop ──► evict (register userfaultfd in each process, MADV_DONTNEED) ──► dormant ──► restore ──► warm
//
// A LiveSandbox is the agent's handle on one sandbox in dedup state or on its way there or back. All page
// work is done by C++ threads of the FaultServer; nothing here needs the GIL.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bases/base_set.h"
#include "common/error.h"
#include "image/image.h"
#include "procfs/capture.h"
#include "restore/working_set.h"
#include "store/sandbox_file.h"

namespace medes {

// When a dormant sandbox that is touched is asleep no more. Up to so many touches within a second each get
// their page and nothing else happens; one more, and it restores as if it had been asked for.
struct WakeRule {
  std::vector<WorkingSetEntry> working_set = {};  // prefetched when it wakes so
  uint32_t touches_per_s_max = 0;
};

struct EvictOptions {
  bool hold_frozen = false;  // keep the threads stopped until restore: nothing touches it
  WakeRule wake = {};
  std::vector<WorkingSetEntry> tick_set = {};    // stays: the sandbox touches it while nobody uses it
  const std::atomic<bool>* abandoned = nullptr;  // see CancelFlag
};

struct EvictResult {
  uint64_t evicted_pages = 0;
  uint64_t resident_pages = 0;  // image pages that had to stay (stack tops, TLS, rseq, mlocked …)
  uint64_t changed_pages = 0;   // written since the capture, or gone: they stay too
  uint64_t tick_pages = 0;      // of the tick set: resident ones too
  uint64_t stopped_us = 0;      // how long the sandbox stood still
  uint64_t evict_us = 0;        // the part of it that registered and evicted
  uint64_t threads = 0, processes = 0;
  std::vector<std::string> notes;  // what could not go, and why
};

// Of pages that came back to a dormant sandbox, those that are as they were go again.
struct ReclaimOptions {
  uint64_t pages_min = 1;  // fewer are not worth a stop
  uint64_t pages_max = 0;  // of one op; 0: all
  const std::atomic<bool>* abandoned = nullptr;
};

struct ReclaimResult {
  uint64_t reclaimed_pages = 0;
  uint64_t changed_pages = 0;  // written since: they stay
  uint64_t tick_pages = 0;     // touched soon after they had gone, before this: they stay too
  uint64_t stopped_us = 0;
  std::vector<std::string> notes;
};

struct RestoreOptions {
  bool lazy = true;                          // thaw with half of the working set in; false: with all pages in
  std::vector<WorkingSetEntry> working_set;  // prefetched in about this order, ahead of the rest
  uint64_t background_bytes_per_s = 0;       // 0: as fast as one low-priority thread goes
};

struct RestoreStats {
  uint64_t pages_total = 0, pages_prefetched = 0, pages_background = 0, faults_demand = 0;
  uint64_t faults_zero = 0, pages_zero = 0;  // in memory that was never there, since the eviction
  uint64_t ready_us = 0;                     // restore called → thawed
  uint64_t complete_us = 0;                  // restore called → last page placed and ranges unregistered
  uint64_t fetch_us = 0, apply_us = 0, place_us = 0;
  uint64_t remote_bytes = 0;
  bool demand_woken = false;     // started by the sandbox's own touches
  bool short_of_memory = false;  // its memory cgroup had no room for all that was missing
};

enum class LiveState : uint8_t { dormant, restoring, complete, lost };

// Thread-safe. Kept alive by its fault server while pages are out.
class LiveSandbox {
 public:
  virtual ~LiveSandbox() = default;
  virtual LiveState state() const = 0;
  virtual EvictResult evict_result() const = 0;
  virtual std::string lost_reason() const = 0;
  virtual Code lost_code() const = 0;  // its cause; ok unless lost. Whether it may pass: passes(code)
  // Whether a process that lives, forked ones included, has pages out that come from here alone.
  virtual bool needed() const = 0;
  // Returns at once. A sandbox that already restores (its own fault woke it) gets the working set on top.
  // Throws lost, or wrong use as invalid_argument.
  virtual void restore(const RestoreOptions& options) = 0;
  // Thawed, or throws lost, process_gone; cancelled when detached before. wait_complete throws the same.
  virtual bool wait_ready(std::chrono::nanoseconds timeout) = 0;
  virtual bool wait_complete(std::chrono::nanoseconds timeout) = 0;
  virtual RestoreStats stats() const = 0;
  virtual std::vector<WorkingSetEntry> working_set() const = 0;  // recorded by this restore
  // Pages that came back so far, whether touched, near one that was, or restored.
  virtual uint64_t placed_pages() const = 0;
  // Touched while dormant, in order; without those that made it wake, which are the first of working_set().
  virtual std::vector<WorkingSetEntry> touched() const = 0;
  // Of a dormant sandbox's pages that came back, takes those away again that are as they were. Nothing for
  // one that is not dormant, or held. Blocks. What throws may have taken some: busy, traced, process_gone,
  // permission_denied, unsupported; cancelled when abandoned, and the sandbox is to be let go of then.
  virtual ReclaimResult reclaim(const ReclaimOptions& options) = 0;
  // Those that a reclaim might take: back, not written when last looked at, and no tick.
  virtual uint64_t reclaimable_pages() const = 0;
  // What the last reclaim took.
  virtual std::vector<WorkingSetEntry> reclaimed() const = 0;
  // Stops serving without touching the sandbox; it waits until adopted again. Ends all waits.
  virtual void detach() = 0;
};

}  // namespace medes
