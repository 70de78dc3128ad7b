// One eviction: stop, see what changed, register, evict, let go. Order of the steps and what a crash at each
// leaves behind: docs/live-driver.md.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "process/move_out.h"
#include "procfs/pagemap.h"
#include "serving/huge_pages.h"
#include "serving/live_sandbox.h"
#include "serving/process_memory.h"
#include "tracing/injection_area.h"
#include "tracing/tracee.h"

namespace medes {

// The userfaultfd that an earlier eviction left open in a process, for use again.
struct OwnUffd {
  int fd = -1;
  uint64_t start_time_ticks = 0, inode = 0;
};

class EvictOp {
 public:
  // All arguments outlive the operation.
  EvictOp(const MemoryImage& image, SandboxFile& file, const EvictOptions& options,
          const std::map<pid_t, OwnUffd>& known, const std::atomic<bool>* cancelled);

  // `before_release` is called with everything evicted. All are let go when the tracer ends.
  void run(const std::function<void()>& before_release);
  TimePoint stopped_since() const { return stopped_since_; }

  std::vector<std::shared_ptr<ProcessMemory>> take_memories() { return std::move(memories_); }
  const EvictResult& result() const { return result_; }
  const std::map<pid_t, OwnUffd>& own_uffds() const { return own_uffds_; }

 private:
  struct Process {
    uint32_t index = 0;
    pid_t pid = 0;
    Gadgets gadgets;
    std::optional<InjectionArea> area;   // as of before the stop
    std::vector<Vma> vmas;               // as of the stop
    std::vector<AddressRange> keep;      // must stay
    std::string may_pin;                 // what may hold on to more than that; empty: nothing
    std::vector<PageSpan> present;       // private pages in evictable mappings
    std::vector<PageSpan> huge;          // those that lie in huge ones
    std::vector<uint64_t> pages;         // image pages that go, ascending
    std::unique_ptr<Injector> injector;  // while stopped
    Uffd uffd;
    std::vector<AddressRange> registered;
    std::vector<uint64_t> faults;  // of others, read before anybody served: yet to be answered
    bool killed = false;
  };

  void check_cancelled() const;
  void find_text();
  void plan(Process& p, const StoppedProcesses& stop);
  void keep_pinned(Process& p, std::span<const Tracee> threads);
  void open_uffd(Process& p);
  void find_tick_set();
  std::vector<uint64_t> candidates(Process& p);
  void compare(Process& p, std::vector<uint64_t> candidates);
  void register_mappings(Process& p);
  void roll_back();
  void evict(Process& p);
  void discard(Process& p, std::span<const AddressRange> ranges);
  size_t discard_together(Process& p, std::span<const AddressRange> ranges);
  MoveOut move_out_of(Process& p);
  void move_out(Process& p, std::span<const AddressRange> ranges);
  void keep_resident(Process& p, std::span<const AddressRange> ranges);
  void discard_alone(Process& p, const AddressRange& range);
  long call_and_drain(Process& p, long number, std::span<const uint64_t> arguments);
  void set_states(const Process& p, PageState state);
  std::vector<AddressRange> runs_to_discard(const Process& p) const;

  const MemoryImage& image_;
  SandboxFile& file_;
  const EvictOptions& options_;
  const std::map<pid_t, OwnUffd>& known_;
  const std::atomic<bool>* cancelled_;
  std::vector<Process> processes_;
  std::vector<bool> stays_;  // a page of the image each, where it is of the tick set
  std::vector<std::shared_ptr<ProcessMemory>> memories_;
  std::map<pid_t, OwnUffd> own_uffds_;
  EvictResult result_;
  TimePoint stopped_since_;
  TimePoint deadline_;  // no injected call is begun after it
  bool discards_together_ = true;
};

}  // namespace medes
