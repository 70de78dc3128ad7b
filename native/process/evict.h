// One eviction: stop, see what changed, register, evict, let go. Order of the steps and what a crash at each
// leaves behind: docs/live-driver.md.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "process/give_back.h"
#include "process/stopped_process.h"
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
  struct Process : StoppedProcess {
    std::vector<PageSpan> present;  // private pages in evictable mappings
    std::vector<PageSpan> huge;     // those that lie in huge ones
    std::vector<uint64_t> pages;    // image pages that go, ascending
    Uffd uffd;
    std::vector<AddressRange> registered;
    bool killed = false;
  };

  void check_cancelled() const;
  void find_text();
  void plan(Process& p, const StoppedProcesses& stop);
  void open_uffd(Process& p);
  void find_tick_set();
  std::vector<uint64_t> candidates(Process& p);
  void compare(Process& p, std::vector<uint64_t> candidates);
  void register_mappings(Process& p);
  void roll_back();
  void evict(Process& p);
  void keep_resident(Process& p, std::span<const PageSpan> there);
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
};

}  // namespace medes
