// The memory of one process (or of a child forked while pages were missing) as the fault server sees it:
// its userfaultfd, where the image's pages belong, and which of them are still out.
//
// The rules that keep bytes right. A page is placed only under the shared lock and only while its state says
// `evicted`; events are read only under the exclusive lock, and what they say is committed before it is given
// up. The kernel refuses to place pages (EAGAIN) from the moment a thread enters munmap, mremap, fork or
// MADV_DONTNEED until its event has been read, so an old page can never land where the program has moved on.
//
// Events of several threads come in another order than the kernel acted. So before the first of them is read
// every thread is told to stop on its way back to user mode, and reading goes on until no call is under way:
// then no thread has made two calls, and the calls of the set are applied as one (mapping_change.h).
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <vector>

#include "common/limits.h"
#include "image/image.h"
#include "procfs/pagemap.h"
#include "restore/placer.h"
#include "serving/call_log.h"
#include "serving/huge_pages.h"
#include "serving/keeper.h"
#include "serving/mapping_change.h"
#include "serving/segments.h"
#include "serving/uffd.h"
#include "store/child_file.h"
#include "store/sandbox_file.h"

namespace medes {

class ProcessMemory;

struct DrainedEvents {
  std::vector<uint64_t> faults;                          // addresses
  std::vector<std::shared_ptr<ProcessMemory>> children;  // forked meanwhile
};

class ProcessMemory : public Placer {
 public:
  // Of a child forked while pages were missing nothing is known but its memory.
  static constexpr pid_t kForkedChild = 0;
  // `states`: one a page of the image, outliving this object. `pid`: or kForkedChild.
  ProcessMemory(pid_t pid, uint32_t process, const ImageLayout& layout, Uffd uffd,
                std::span<std::atomic<uint8_t>> states);
  // Whoever drops it early, by an error as well: missing pages never read as zeros (leave_to_keeper).
  ~ProcessMemory() override { leave_to_keeper(); }

  pid_t pid() const { return pid_; }
  bool is_forked_child() const { return pid_ == kForkedChild; }
  uint32_t process() const { return process_; }
  int fd() const { return uffd_.fd(); }
  uint64_t inode() const { return uffd_.inode(); }
  bool gone() const { return gone_.load(std::memory_order_acquire); }
  uint64_t first_page() const { return first_page_; }
  uint64_t end_page() const { return end_page_; }
  std::chrono::steady_clock::time_point since() const { return since_; }  // we know of it
  uint64_t missing() const { return missing_.load(std::memory_order_acquire); }
  uint64_t placed() const { return placed_.load(std::memory_order_acquire); }  // and still there
  void add_segment(uint64_t begin, uint64_t end) { segments_.add(begin, end, begin); }
  void count_missing();  // after the states were set up
  // Where to keep what must outlive the agent: in the sandbox file, or beside it for children forked later.
  void keep_record(ChangeRecord& record, uint32_t& stop_note, const std::string& sandbox_path);
  // A child that an agent before us had not filled, from its file and a copy of the userfaultfd named there.
  // Its record is yet to be finished (replay_log).
  static std::shared_ptr<ProcessMemory> of_child(const ImageLayout& layout, std::shared_ptr<ChildFile> file,
                                                 Uffd uffd, const std::string& sandbox_path);
  // Of what an agent before us left: where moved memory is, and what was read and not committed, which is
  // replayed; children whose fork was among that are appended. Throws lost when not all is known.
  void recover(std::vector<std::shared_ptr<ProcessMemory>>& born);
  void replay_log(std::vector<std::shared_ptr<ProcessMemory>>& born);  // its second half
  // Where an image page is now; 0 when its place was unmapped.
  uint64_t address_of(uint64_t page) const;
  // What was huge before the eviction; not known of a process that was adopted.
  void set_huge_pages(HugePages huge) { huge_ = std::move(huge); }
  const HugePages& huge_pages() const { return huge_; }

  PageState state(uint64_t page) const {
    return static_cast<PageState>(states_[page].load(std::memory_order_acquire));
  }

  // A page is worked on by one thread at a time; the others leave it to that one.
  bool claim(uint64_t page);
  void unclaim(uint64_t page);

  // The driver takes pages away once more, with all threads stopped, and reads the events of its calls:
  // nobody else does from here until end_reclaim(), and faults on these pages wait. What of `pages`
  // (ascending) is back is marked `evicting`; returns where that lies now, ascending by page.
  std::vector<AddressRange> begin_reclaim(std::span<const uint64_t> pages);
  // `there`: what could not go, by address. The rest is out.
  void end_reclaim(std::span<const PageSpan> there);
  bool reclaiming() const { return reclaiming_.load(std::memory_order_acquire); }
  std::vector<uint64_t> restored_pages() const;  // ascending
  const Uffd& uffd() const { return uffd_; }

  // Reads all queued events, applies and commits them; no call that changes mappings is under way then.
  // Threads of the sandbox may be stopped for some 100 us. A removal inside one of `own_discards` (the kernel
  // tells of each mapping by itself) is the driver's and means nothing.
  DrainedEvents drain(std::span<const AddressRange> own_discards = {});

  // Has `look` look at the process with all calls that changed mappings committed, again and again until none
  // came between. Children forked meanwhile are appended to `born`. Nobody may be serving it.
  void look_undisturbed(std::vector<std::shared_ptr<ProcessMemory>>& born, const std::function<void()>& look);

  // Image page behind an address, kNoPage when it is not of the image or not out.
  uint64_t missing_page_at(uint64_t address);
  // An untouched (or given back) address was accessed: the kernel would have given a zero page. It gets one,
  // and so do those behind it that would (`placed`: how many in all). busy: the page turned out to be one of
  // the image's that is out. limit_exceeded: no memory now.
  Code place_zeros(uint64_t address, uint64_t& placed);
  // Makes every waiting thread fault once more: those whose fault a dead agent had read and not answered.
  void wake_all();
  // The same in memory that nothing is known of: new, moved while nothing of it was missing. Throws
  // process_gone.
  void wake_everywhere();
  void wake(uint64_t address) { uffd_.wake(address & ~(kPageBytes - 1), 1); }

  // Placer; process_gone when the process is, limit_exceeded when there is no memory now. Pages must be
  // claimed by the caller.
  Code place(uint64_t first_page, uint64_t count, const std::byte* bytes) override;
  // Called (without locks) when events stand in the way of placing; must have them drained.
  void on_events(std::function<void()> handler) { on_events_ = std::move(handler); }

  // All pages are in: give every mapping back to the kernel alone. close() comes after, once nothing polls
  // the descriptor any more.
  void unregister_all();
  void close();
  // Nobody serves it from here on: what only we have of it is left open while pages are missing. Idempotent.
  void leave_to_keeper();
  void mark_gone() { gone_ = true; }
  bool look_whether_gone();  // asks the kernel: of forked children nothing else tells

 private:
  static constexpr size_t kEventsPerRead = 64;
  static constexpr uint64_t kMaxUserAddress = (1ull << 47) - kPageBytes;

  // A forked child: same segments, same pages missing, its own states. Under the exclusive lock: what the
  // parent gets from now on, the child does not have.
  std::shared_ptr<ProcessMemory> fork(Uffd uffd) const;
  std::vector<uint64_t> unwanted_by_child() const;
  static void hold(ChildFile& file, const Holder& here);
  void keep_in(std::shared_ptr<ChildFile> file, const std::string& sandbox_path);
  void recover_from(std::shared_ptr<ChildFile> file, const std::string& sandbox_path);
  void close_locked();
  std::shared_ptr<ChildFile> keep_child(const Uffd& uffd, std::span<const std::byte> states) const;
  void add_mappings_of_layout();
  void recover_moves();
  void read_rest(std::vector<uffd_msg>& calls);
  // Of a child just forked: takes over those changes of its parent that it was born with.
  void apply_inherited(std::span<const MappingChange> changes,
                       std::vector<std::shared_ptr<ProcessMemory>>& grandchildren);
  void forget(std::span<const AddressRange> origins);
  bool alone() const;
  size_t read_calls(size_t most, std::span<const AddressRange> own_discards, DrainedEvents& out,
                    std::vector<uffd_msg>& calls);
  void read_and_apply_set(std::span<const AddressRange> own_discards, DrainedEvents& out,
                          std::vector<uffd_msg>& calls);
  void apply_and_commit(std::span<const uffd_msg> calls, ChangeRecord::Order order,
                        std::vector<std::shared_ptr<ProcessMemory>>& born);
  void on_fork(Uffd child_uffd, std::span<const MappingChange> changes,
               std::vector<std::shared_ptr<ProcessMemory>>& born);
  bool apply_set(std::span<const uffd_msg> calls, std::vector<std::shared_ptr<ProcessMemory>>& born);
  std::optional<std::vector<uffd_msg>> take_left_calls(std::vector<Holder>& holders);
  std::vector<MovedPages> moved_pages() const;  // of which something is missing
  std::vector<MovedPages> moves_to_note();
  bool any_restored(uint64_t origin, uint64_t bytes) const;
  void keep_back(uint64_t origin, uint64_t bytes);
  template <typename F>
  bool any_page(uint64_t origin, uint64_t bytes, F&& wanted) const;
  static bool is_out(PageState state) { return state == PageState::evicted || state == PageState::evicting; }
  uint64_t page_at(uint64_t address) const;  // of the image, kNoPage when it is not; the lock is held
  bool any_missing(uint64_t origin, uint64_t bytes) const;
  bool settle_events();
  bool all_out_between(uint64_t page, uint64_t next) const;
  bool unregister_registered();  // true when there were any, or it could not be told
  void set_state(uint64_t page, PageState state);
  uint64_t unguarded(uint64_t address, uint64_t count);
  uint64_t fresh_pages(uint64_t address);
  Code place_once(uint64_t page, uint64_t count, const std::byte* bytes, uint64_t& done);

  const pid_t pid_;
  const uint32_t process_;
  const ImageLayout& layout_;
  Uffd uffd_;
  HugePages huge_;
  std::once_flag look_at_pages_;
  UniqueFd pagemap_;                              // from the first page placed on
  std::vector<std::atomic<uint8_t>> own_states_;  // of a forked child
  std::span<std::atomic<uint8_t>> states_;
  std::vector<std::atomic<uint8_t>> claims_;  // of pages first_page_ … end_page_
  uint64_t first_page_ = 0, end_page_ = 0;
  std::atomic<uint64_t> missing_{0}, placed_{0};
  std::atomic<bool> gone_{false};
  std::atomic<bool> reclaiming_{false};  // written under the exclusive lock
  struct Marked {
    uint64_t first_page = 0, count = 0;
  };
  std::vector<Marked> marked_;  // `evicting` by the reclaim under way
  uint64_t going_ = 0;          // of these, those that were back
  const std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  mutable std::shared_mutex mutex_;
  Segments segments_;
  CallLog log_;
  std::shared_ptr<ChildFile> file_;  // of a forked child
  keeper::ToldWhenGone told_when_gone_;
  uint32_t no_stop_note_ = 0;
  uint32_t* stop_note_ = &no_stop_note_;
  std::string sandbox_path_;  // children's files lie beside it; empty: nowhere
  std::function<void()> on_events_;
};

}  // namespace medes
