// The work of a restore: demand faults, prefetch of the working set, the rest behind it, completion.
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "common/error.h"
#include "common/fault_point.h"
#include "live/sandbox.h"

namespace medes {
namespace {

// Aligned block that comes in with a faulting page when a working set is known and this is drift: what is
// near may be next. Without one every page comes alone, so that the record holds what is touched and nothing
// else.
constexpr size_t kFaultAroundPages = 8, kFaultAroundRecording = 1;
constexpr int kBackgroundNice = 19;  // the sandbox's own threads come first
// The rest of a lazy restore waits until the first request has touched what it needs: no demand fault for
// kQuiet, at most kHoldMost. So the request has the cores, and the recorded working set is whole.
constexpr std::chrono::milliseconds kQuiet{15}, kHoldMost{200};
constexpr size_t kFetchAheadPages = 2048;
// While a request runs its own faults fetch over the same connection: they wait for one of these batches at
// most.
constexpr size_t kFetchBesidePages = 128;
// How long a base's node may be away before the sandbox counts as lost: an agent restarts in seconds.
constexpr std::chrono::seconds kPeerPatience{20};
constexpr std::chrono::milliseconds kPeerBackoffFirst{50}, kPeerBackoffMost{500};

class ClaimsOf : public PageClaims {
 public:
  explicit ClaimsOf(ProcessMemory& memory) : memory_(memory) {}
  bool claim(uint64_t page) override { return memory_.claim(page); }
  void unclaim(uint64_t page) override { memory_.unclaim(page); }

 private:
  ProcessMemory& memory_;
};

void set_nice(int nice) { (void)setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), nice); }

std::vector<uint64_t> evicted_pages(const ProcessMemory& memory) {
  std::vector<uint64_t> pages;
  for (uint64_t p = memory.first_page(); p < memory.end_page(); ++p)
    if (memory.state(p) == PageState::evicted) pages.push_back(p);
  return pages;
}

size_t cores() { return std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace

void Sandbox::drain(const std::shared_ptr<ProcessMemory>& memory, std::vector<uint64_t>& faults) {
  ++draining_;
  DrainedEvents events = memory->drain();
  faults.insert(faults.end(), events.faults.begin(), events.faults.end());
  for (auto& child : events.children) add_child(std::move(child));
  --draining_;
}

// Until it has its pages, a forked child depends on us alone (its userfaultfd is not open in itself): it is
// filled at once, and the restore of its parent begins.
void Sandbox::add_child(std::shared_ptr<ProcessMemory> child) {
  add_memory(child);
  host_.watch(shared_from_this(), child);
  ++running_;
  wake_by_fault();
  host_.enqueue([self = shared_from_this(), child] { self->run_child(child); }, true);
}

void Sandbox::handle_readable(const std::shared_ptr<ProcessMemory>& memory, Rebuilder::Worker& worker) {
  std::vector<uint64_t> faults;
  drain(memory, faults);
  for (uint64_t address : faults) handle_fault(memory, address, worker);
}

void Sandbox::handle_exit(ProcessMemory& memory) {
  memory.mark_gone();
  if (all_gone()) lose(Code::process_gone, "its processes have exited");
}

void Sandbox::wake_by_fault() {
  {
    const std::lock_guard lock(mutex_);
    LiveState expected = LiveState::dormant;
    if (!state_.compare_exchange_strong(expected, LiveState::restoring)) return;
    restore_called_ = Clock::now();
    stats_.demand_woken = true;
    ++running_;
  }
  host_.emit(file_->path(), "demand_woken");
  RestoreOptions options;
  {
    const std::lock_guard lock(mutex_);
    options.working_set = default_working_set_;
  }
  host_.enqueue([self = shared_from_this(), options = std::move(options)] { self->run(options); }, true);
}

void Sandbox::handle_fault(const std::shared_ptr<ProcessMemory>& memory, uint64_t address,
                           Rebuilder::Worker& worker) {
  if (state() == LiveState::lost || detached_) return;  // it waits, rather than run on wrong bytes
  const uint64_t page = memory->missing_page_at(address);
  if (page == ImageLayout::kNoPage) {
    const Code code = memory->place_zero(address);
    if (code == Code::busy) host_.fault_later(shared_from_this(), memory, address);
    return;
  }
  fault_point("restore.fault");
  wake_by_fault();
  ++faults_;
  last_fault_us_ = since_restore_us();
  record(*memory, page);
  if (rebuilder_.all_local()) return serve_page(memory, page, worker);
  // The network may keep us waiting; fault threads serve other sandboxes meanwhile.
  host_.enqueue(
      [self = shared_from_this(), memory, page] {
        static thread_local Rebuilder::Worker own;  // its buffers are too large to be made for a fault
        self->serve_page(memory, page, own);
      },
      true);
}

// The aligned block of image pages around `page`, as [begin, end), within the process's own.
std::pair<uint64_t, uint64_t> Sandbox::block_around(const ProcessMemory& memory, uint64_t page) const {
  const uint64_t pages = recording_afresh_ ? kFaultAroundRecording : kFaultAroundPages;
  const uint64_t block = page / pages * pages;
  return {std::max(block, memory.first_page()), std::min(block + pages, memory.end_page())};
}

// Books the page that was touched. Children are left out: their pages are filled at once, whoever touches
// them.
void Sandbox::record(ProcessMemory& memory, uint64_t page) {
  if (memory.pid() == 0) return;
  const std::lock_guard lock(mutex_);
  if (recorded_.size() < kMaxWorkingSetPages) recorded_.push_back(regions_.entry_of(page));
}

void Sandbox::serve_page(const std::shared_ptr<ProcessMemory>& memory, uint64_t page,
                         Rebuilder::Worker& worker) {
  uint64_t pages[kFaultAroundPages];
  size_t n = 0;
  const auto [begin, end] = block_around(*memory, page);
  for (uint64_t p = begin; p < end; ++p) pages[n++] = p;
  ClaimsOf claims(*memory);
  uint64_t placed = 0;
  const Code code = rebuild_patiently(worker, std::span(pages, n), claims, *memory, placed);
  demanded_ += placed;
  if (code == Code::process_gone)
    handle_exit(*memory);
  else if (code != Code::ok)
    lose(code, "a page could not be rebuilt");
  settle();
}

// A peer that is away may come back: the pages are asked for again, with pauses, until patience ends.
Code Sandbox::rebuild_patiently(Rebuilder::Worker& worker, std::span<const uint64_t> pages,
                                PageClaims& claims, ProcessMemory& memory, uint64_t& placed) {
  const auto deadline = Clock::now() + kPeerPatience;
  for (auto pause = kPeerBackoffFirst;; pause = std::min(pause * 2, kPeerBackoffMost)) {
    const Code code = rebuilder_.rebuild(worker, pages, claims, memory, placed);
    const bool passing = code == Code::peer_unreachable || code == Code::deadline_exceeded ||
                         code == Code::unauthenticated || code == Code::busy;
    if (!passing || Clock::now() > deadline || detached_ || state() == LiveState::lost) return code;
    std::this_thread::sleep_for(pause);
  }
}

// Rebuilds `pages` (ascending) on `threads` threads, this one included. Stops early when the sandbox is
// lost, and at no more than `bytes_per_s` (0: unbounded).
Code Sandbox::fill(const std::shared_ptr<ProcessMemory>& memory, std::span<const uint64_t> pages,
                   size_t threads, int nice, uint64_t bytes_per_s, std::atomic<uint64_t>& placed_sum) {
  std::atomic<size_t> next{0};
  std::atomic<Code> failure{Code::ok};
  const auto begin = Clock::now();
  ClaimsOf claims(*memory);
  auto work = [&] {
    Rebuilder::Worker worker;
    for (;;) {
      const size_t at = next.fetch_add(Rebuilder::kBlockPages);
      if (at >= pages.size() || failure.load() != Code::ok || state() == LiveState::lost || detached_) return;
      const auto block = pages.subspan(at, std::min(Rebuilder::kBlockPages, pages.size() - at));
      // The thread that opens a new stretch has all of its base pages fetched in one batch.
      if (!rebuilder_.all_local() && at % kFetchAheadPages == 0) {
        const auto ahead = pages.subspan(at, std::min(kFetchAheadPages, pages.size() - at));
        (void)rebuilder_.fetch(ahead, kFetchTimeout);  // a failure shows again, and counts, at its block
      }
      uint64_t placed = 0;
      const Code code = rebuild_patiently(worker, block, claims, *memory, placed);
      placed_sum += placed;
      if (code != Code::ok) failure = code;
      if (bytes_per_s != 0) {
        const double due_s =
            static_cast<double>((at + block.size()) * kPageBytes) / static_cast<double>(bytes_per_s);
        std::this_thread::sleep_until(
            begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(due_s)));
      }
    }
  };
  const size_t blocks = (pages.size() + Rebuilder::kBlockPages - 1) / Rebuilder::kBlockPages;
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < std::min(threads, blocks); ++i)
    helpers.emplace_back([&] {
      set_nice(nice);
      work();
    });
  set_nice(nice);
  work();
  set_nice(0);
  for (auto& h : helpers) h.join();
  return failure;
}

void Sandbox::prefetch(const RestoreOptions& options) {
  std::vector<uint64_t> pages = regions_.pages_of(options.working_set);
  if (pages.empty()) return;
  std::sort(pages.begin(), pages.end());
  for (const auto& memory : memories()) {
    if (memory->pid() == 0) continue;
    const auto b = std::lower_bound(pages.begin(), pages.end(), memory->first_page());
    const auto e = std::lower_bound(pages.begin(), pages.end(), memory->end_page());
    const Code code = fill(memory, std::span(b, e), cores(), 0, 0, prefetched_);
    if (code == Code::process_gone)
      handle_exit(*memory);
    else if (code != Code::ok)
      lose(code, "the working set could not be rebuilt");
  }
}

void Sandbox::background(const RestoreOptions& options) {
  const int nice = options.lazy ? kBackgroundNice : 0;
  for (const auto& memory : memories()) {
    if (memory->gone()) continue;
    const std::vector<uint64_t> pages = evicted_pages(*memory);
    const Code code = fill(memory, pages, cores(), nice, options.background_bytes_per_s, background_);
    if (code == Code::process_gone)
      handle_exit(*memory);
    else if (code != Code::ok)
      lose(code, "a page could not be rebuilt");
  }
}

void Sandbox::run(RestoreOptions options) {
  recording_afresh_ = options.working_set.empty();
  prefetch(options);
  fault_point("restore.prefetched");
  if (state() == LiveState::lost || detached_) return;
  if (!options.lazy) return run_background(options);
  set_ready();
  host_.enqueue([self = shared_from_this(), options = std::move(options)] { self->run_background(options); },
                false);
}

// (blocks) See kQuiet. Runs on a thread for bulk work only, so nobody's fault waits behind it.
void Sandbox::hold_background() {
  const auto begin_us = since_restore_us();
  const auto us = [](auto d) { return static_cast<uint64_t>(std::chrono::microseconds(d).count()); };
  while (state() == LiveState::restoring && !detached_) {
    const uint64_t now_us = since_restore_us();
    const uint64_t active_us = std::max(begin_us, last_fault_us_.load());
    if (now_us - begin_us >= us(kHoldMost) || now_us >= active_us + us(kQuiet)) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Remote base pages come in ahead of everything else: a demand fault then finds them there.
void Sandbox::fetch_ahead() {
  for (const auto& memory : memories()) {
    std::vector<uint64_t> pages = evicted_pages(*memory);
    for (size_t at = 0; at < pages.size(); at += kFetchBesidePages) {
      if (state() != LiveState::restoring || detached_ || memory->gone()) return;
      const auto stretch = std::span(pages).subspan(at, std::min(kFetchBesidePages, pages.size() - at));
      (void)rebuilder_.fetch(stretch,
                             kFetchTimeout);  // a failure shows again, and counts, when it is rebuilt
    }
  }
}

void Sandbox::run_background(const RestoreOptions& options) {
  if (options.lazy && !rebuilder_.all_local()) fetch_ahead();
  if (options.lazy) hold_background();
  if (state() != LiveState::lost && !detached_) background(options);
  --running_;
  settle();
}

void Sandbox::run_child(const std::shared_ptr<ProcessMemory>& child) {
  const std::vector<uint64_t> pages = evicted_pages(*child);
  const Code code = fill(child, pages, cores(), 0, 0, background_);
  if (code != Code::ok && code != Code::process_gone)
    lose(code, "a forked child's page could not be rebuilt");
  --running_;
  settle();
}

void Sandbox::settle() {
  if (state() != LiveState::restoring || running_ > 0 || detached_) return;
  const auto all = memories();
  for (const auto& m : all)
    if (!m->gone() && m->missing() > 0) return;
  {
    const std::lock_guard lock(mutex_);
    if (state() != LiveState::restoring || running_ > 0) return;
    ++running_;  // only one thread gets past here at a time
  }
  fault_point("restore.unregister");
  for (const auto& m : all) m->unregister_all();
  // A fork read just before may still be on its way to us. Its child is filled first; then we come again.
  while (draining_ > 0) std::this_thread::yield();
  if (memories().size() != all.size()) {
    --running_;
    return settle();
  }
  {
    const std::lock_guard lock(mutex_);
    stats_.complete_us = since_restore_us();
  }
  set_ready();
  // Before anybody can see it complete: the next dedup op of this sandbox may follow at once. It uses the
  // same userfaultfd, and a thread that came here with its events would answer them by what this restore
  // knows; with our copies closed none can.
  host_.forget(file_->path());
  for (const auto& m : all) m->close();
  {
    const std::lock_guard lock(mutex_);
    state_ = LiveState::complete;
  }
  changed_.notify_all();
  host_.emit(file_->path(), "complete");
  for (const auto& m : all)
    if (!m->huge_pages().ranges.empty())
      host_.enqueue(
          [m] {
            set_nice(kBackgroundNice);
            (void)join_huge_pages(m->huge_pages());
            set_nice(0);
          },
          false);
}

}  // namespace medes
