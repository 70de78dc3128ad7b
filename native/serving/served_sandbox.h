// One sandbox whose pages are (partly) out: its processes' memories, the restore in progress, its record.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "procfs/memory_room.h"
#include "restore/fault_readahead.h"
#include "restore/rebuilder.h"
#include "serving/live_sandbox.h"
#include "serving/process_memory.h"

namespace medes {

// What a sandbox needs of the server that runs its work.
class SandboxServer {
 public:
  virtual ~SandboxServer() = default;
  virtual void emit(const std::string& path, const char* event) = 0;
  virtual void enqueue(std::function<void()> job, bool urgent) = 0;  // on a restore thread
  virtual void enqueue_later(std::function<void()> job, bool urgent, std::chrono::milliseconds after) = 0;
  virtual void forget(const class ServedSandbox& sandbox) = 0;  // it needs no serving any more
  virtual void watch(std::shared_ptr<class ServedSandbox> sandbox, std::shared_ptr<ProcessMemory> memory) = 0;
  virtual void fault_later(std::shared_ptr<class ServedSandbox> sandbox,
                           std::shared_ptr<ProcessMemory> memory, uint64_t address) = 0;
  virtual ReclaimResult reclaim(class ServedSandbox& sandbox, const ReclaimOptions& options) = 0;  // blocks
};

class ServedSandbox : public LiveSandbox, public std::enable_shared_from_this<ServedSandbox> {
  using Clock = std::chrono::steady_clock;

 public:
  ServedSandbox(SandboxServer& server, std::shared_ptr<SandboxFile> file, std::shared_ptr<BaseSet> bases);

  // Set-up, before the server knows the sandbox.
  void add_memory(std::shared_ptr<ProcessMemory> memory);
  void add_child(std::shared_ptr<ProcessMemory> child);  // forked while pages were out: it is filled at once
  void set_evict_result(EvictResult result);
  void set_wake_rule(WakeRule rule);
  void set_stopped_us(uint64_t us);
  void set_held(bool held, Clock::time_point since = Clock::now()) { held_ = held, held_since_ = since; }
  const std::shared_ptr<SandboxFile>& file() const { return file_; }
  std::vector<std::shared_ptr<ProcessMemory>> memories() const;
  bool fills_children() const;  // pages of a forked child are out that we alone can bring

  LiveState state() const override { return state_.load(std::memory_order_acquire); }
  EvictResult evict_result() const override;
  std::string lost_reason() const override;
  Code lost_code() const override;
  bool needed() const override;
  void restore(const RestoreOptions& options) override;
  bool wait_ready(std::chrono::nanoseconds timeout) override;
  bool wait_complete(std::chrono::nanoseconds timeout) override;
  RestoreStats stats() const override;
  std::vector<WorkingSetEntry> working_set() const override;
  uint64_t placed_pages() const override;
  std::vector<WorkingSetEntry> touched() const override;
  ReclaimResult reclaim(const ReclaimOptions& options) override { return server_.reclaim(*this, options); }
  uint64_t reclaimable_pages() const override;
  std::vector<WorkingSetEntry> reclaimed() const override;
  void detach() override;

  // Around a reclaim. False when it is none for it: not dormant, held, or let go of. While one is under way
  // a restore that began does not complete, and detach() waits.
  bool begin_reclaim();
  std::vector<uint64_t> reclaim_candidates(const ProcessMemory& memory, uint64_t& ticks) const;
  void reclaim_step();  // at its beginning, and before pages that were on their way out are out
  void keep_changed(std::span<const uint64_t> pages);  // they were written: no candidates any more
  void end_reclaim(std::vector<uint64_t> taken);

  // From the fault threads.
  void handle_readable(const std::shared_ptr<ProcessMemory>& memory, Rebuilder::Worker& worker);
  void handle_fault(const std::shared_ptr<ProcessMemory>& memory, uint64_t address,
                    Rebuilder::Worker& worker);
  void handle_exit(ProcessMemory& memory);  // its pidfd became readable
  void wake_if_whole();                     // asleep with nothing out it would sleep for ever

 private:
  void drain(const std::shared_ptr<ProcessMemory>& memory, std::vector<uint64_t>& faults);
  bool ask_for(const ProcessMemory& memory, uint64_t what);
  void asked_no_more(ProcessMemory& memory, uint64_t what);
  bool only_touched(uint64_t page);
  void look_for_tick(uint64_t page);
  void serve_remote();
  void wake_by_fault();
  void record(ProcessMemory& memory, uint64_t page);
  void fetch_ahead();
  void hold_background();
  void serve_page(const std::shared_ptr<ProcessMemory>& memory, uint64_t page, Rebuilder::Worker& worker,
                  int tries = 0);
  void serve_around(const std::shared_ptr<ProcessMemory>& memory, FaultReadahead::Pages ahead,
                    Rebuilder::Worker& worker);
  void fetch_missing(ProcessMemory& memory, uint64_t begin, uint64_t end, Rebuilder::Worker& worker);
  void serve_again(const std::shared_ptr<ProcessMemory>& memory, uint64_t page, int tries);
  bool room_for_all();
  bool room_for(uint64_t bytes);
  void short_of_memory();
  Code serve_pages(const std::shared_ptr<ProcessMemory>& memory, uint64_t begin, uint64_t end,
                   Rebuilder::For what, Rebuilder::Worker& worker);
  Code rebuild_patiently(Rebuilder::Worker& worker, std::span<const uint64_t> pages, Rebuilder::For what,
                         PageClaims& claims, ProcessMemory& memory, uint64_t& placed);
  void run(RestoreOptions options);
  void run_background(const RestoreOptions& options);
  void run_rest(const RestoreOptions& options, int tries);
  void run_child(const std::shared_ptr<ProcessMemory>& child, int tries);
  void prefetch(const RestoreOptions& options);
  struct Fill;
  struct Waiting {
    std::shared_ptr<ProcessMemory> memory;
    uint64_t page = 0;
  };
  struct Wanted {
    uint32_t memory = 0;  // index
    uint64_t page = 0;
  };
  std::shared_ptr<Fill> plan_fill(std::vector<std::shared_ptr<ProcessMemory>> memories,
                                  std::span<const Wanted> wanted) const;
  bool fill_rest(std::vector<std::shared_ptr<ProcessMemory>> memories, const RestoreOptions& options,
                 const char* failed);
  void call_helpers(const std::shared_ptr<Fill>& fill, size_t helpers, bool urgent);
  bool fetch_units(Fill& fill);
  void rebuild_units(Fill& fill, size_t until);
  void finish_fill(Fill& fill);
  void try_complete();  // completes when nothing is missing any more
  void end_serving(void (ProcessMemory::*how)());
  void set_ready();
  void thaw();
  void lose(Code code, const std::string& why);
  void check_not_lost() const;
  uint64_t since_restore_us() const;
  bool all_gone() const;
  bool anything_missing() const;  // of processes that live

  SandboxServer& server_;
  const std::shared_ptr<SandboxFile> file_;
  const std::shared_ptr<BaseSet> bases_;
  Rebuilder rebuilder_;
  RegionIndex regions_;
  FaultReadahead readahead_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<std::shared_ptr<ProcessMemory>> memories_;
  EvictResult evict_result_;
  bool held_ = false;  // by SIGSTOP
  Clock::time_point held_since_{};
  WakeRule wake_rule_;
  std::vector<WorkingSetEntry> touched_;  // while dormant
  struct {                                // the second that the latest touch fell into
    Clock::time_point since{};
    uint32_t touches = 0;
    size_t first = 0;  // in touched_
  } burst_;
  // What faulted and is not served yet: a page, or ~address of one that is new. With reclaim_steps_ as of
  // then.
  std::map<std::pair<const ProcessMemory*, uint64_t>, uint64_t> asked_for_;
  uint64_t reclaim_steps_ = 0;
  std::vector<bool> stays_;      // by page, from the first reclaim on: ticks, and what was written
  std::vector<bool> reclaimed_;  // by the last one, and not touched since
  uint64_t staying_ = 0;         // of stays_, back
  Clock::time_point reclaimed_at_{};
  bool reclaiming_ = false;
  std::deque<Waiting> remote_waiting_;  // pages that were touched, of base pages elsewhere
  size_t remote_at_work_ = 0;           // threads that serve these
  std::vector<WorkingSetEntry> recorded_;
  std::string lost_reason_;
  Code lost_code_ = Code::ok;
  bool ready_ = false;
  bool settling_ = false;  // a thread completes it
  RestoreStats stats_;
  Clock::time_point restore_called_{};
  std::optional<MemoryRoom> room_;

  std::atomic<LiveState> state_{LiveState::dormant};
  std::atomic<bool> detached_{false};
  std::atomic<bool> told_short_of_memory_{false};  // what is missing comes when it is touched
  std::atomic<uint64_t> last_fault_us_{0};         // since the restore began
  std::atomic<bool> recording_afresh_{true};       // this restore knows no working set
  std::atomic<int> running_{0};                    // restore jobs at work
  std::atomic<int> draining_{0};  // threads between reading a fork event and taking its child in
  std::atomic<uint64_t> room_looks_{0};
  std::atomic<uint64_t> faults_{0}, prefetched_{0}, background_{0}, demanded_{0};
  std::atomic<uint64_t> zero_faults_{0}, zeros_{0};  // since the eviction: in memory that was never there
};

}  // namespace medes
