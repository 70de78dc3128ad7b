// The work of a restore: demand faults, prefetch of the working set, the rest behind it, completion.
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <thread>

#include "common/error.h"
#include "common/fault_point.h"
#include "live/sandbox.h"

namespace medes {
namespace {

constexpr const char* kRebuildFailed = "a page could not be rebuilt";
constexpr int kBackgroundNice = 19;  // the sandbox's own threads come first
// The rest of a lazy restore waits until the first request has touched what it needs: no demand fault for
// kQuiet, at most kHoldMost. So the request has the cores, and the recorded working set is whole.
constexpr std::chrono::milliseconds kQuiet{15}, kHoldMost{200};
// A small working set is prefetched whole before the sandbox is let go.
constexpr size_t kReadyPagesMin = 1024;
constexpr size_t kFetchAheadPages = 2048;
// While a request runs its own faults fetch over the same connection: they wait for one of these batches at
// most.
constexpr size_t kFetchBesidePages = 128;
// How long a base's node may be away before the sandbox counts as lost: an agent restarts in seconds.
constexpr std::chrono::seconds kPeerPatience{20};
constexpr std::chrono::milliseconds kPeerBackoffFirst{50}, kPeerBackoffMost{500};
// A memory cgroup that is full may have room again in a moment: asked again after 20 ms, then twice as long.
constexpr std::chrono::milliseconds kMemoryBackoffFirst{20};
constexpr int kMemoryBackoffDoublings = 4;
constexpr size_t kUnitsPerLook = 16;  // between two looks at the room that a memory cgroup has
// Left to the program, and to what other threads of ours place between a look and the deed.
constexpr uint64_t kRoomReserve = 1u << 20;

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

// A worker's buffers are too large to be made anew for a piece of work, and those used last are in the cache.
class Lease {
 public:
  Lease() {
    const std::lock_guard lock(idle().mutex);
    if (auto& workers = idle().workers; !workers.empty()) {
      worker_ = std::move(workers.back());
      workers.pop_back();
    }
    if (!worker_) worker_ = std::make_unique<Rebuilder::Worker>();
  }
  ~Lease() {
    worker_->wipe();
    const std::lock_guard lock(idle().mutex);
    idle().workers.push_back(std::move(worker_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Rebuilder::Worker& operator*() { return *worker_; }

 private:
  struct Idle {
    std::mutex mutex;
    std::vector<std::unique_ptr<Rebuilder::Worker>> workers;  // as many as ever were at work at once
  };
  static Idle& idle() {
    static auto& pool = *new Idle;  // threads may outlive static objects
    return pool;
  }
  std::unique_ptr<Rebuilder::Worker> worker_;
};

std::chrono::milliseconds memory_pause(int tries) {
  return kMemoryBackoffFirst * (1 << std::min(tries, kMemoryBackoffDoublings));
}

size_t cores() { return std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace

void Sandbox::drain(const std::shared_ptr<ProcessMemory>& memory, std::vector<uint64_t>& faults) {
  struct Draining {
    std::atomic<int>& count;
    explicit Draining(std::atomic<int>& c) : count(c) { ++count; }
    ~Draining() { --count; }
  } draining(draining_);
  DrainedEvents events = memory->drain();
  faults.insert(faults.end(), events.faults.begin(), events.faults.end());
  for (auto& child : events.children) add_child(std::move(child));
}

// Until it has its pages, a forked child depends on us alone (its userfaultfd is not open in itself): it is
// filled at once, and the restore of its parent begins.
void Sandbox::add_child(std::shared_ptr<ProcessMemory> child) {
  add_memory(child);
  {
    const std::lock_guard lock(mutex_);
    if (detached_) return;  // whoever lets go of it waits for us, and puts the child aside
  }
  host_.watch(shared_from_this(), child);
  ++running_;
  wake_by_fault();
  host_.enqueue([self = shared_from_this(), child] { self->run_child(child, 0); }, true);
}

// Where what is missing does not all fit the memory limit, the kernel would kill for it (or refuse it, where
// its killer is off): it comes page by page then, when it is touched, for as long as there is room for that.
// A child and its parent share what is there since the fork, and each gets a copy of what was missing: what
// the program would have shared may well never be needed twice, and a child that ends leaves room.
bool Sandbox::room_for_all() {
  uint64_t missing = 0;
  for (const auto& m : memories())
    if (m->missing() > 0 && !(m->pid() == 0 ? m->look_whether_gone() : m->gone())) missing += m->missing();
  return room_for(missing * kPageBytes);
}

bool Sandbox::room_for(uint64_t bytes) {
  std::optional<MemoryRoom> room;
  {
    const std::lock_guard lock(mutex_);
    if (!room_) room_.emplace(memories_.front()->pid());  // its groups, should it end before its children
    room = room_;
  }
  const auto left = room->bytes();
  return !left || bytes + kRoomReserve <= *left;
}

void Sandbox::short_of_memory() {
  if (told_short_of_memory_.exchange(true)) return;
  host_.emit(file_->path(), "short_of_memory");
}

void Sandbox::handle_readable(const std::shared_ptr<ProcessMemory>& memory, Rebuilder::Worker& worker) {
  std::vector<uint64_t> faults;
  drain(memory, faults);
  for (uint64_t address : faults) handle_fault(memory, address, worker);
}

// A process may end as soon as its last fork was read, while another thread still takes the child in: only
// with nothing on its way is it known that none is left.
void Sandbox::handle_exit(ProcessMemory& memory) {
  if (detached_) return;  // it is out of our hands, which says nothing of the process
  memory.mark_gone();
  if (!all_gone()) return;
  while (draining_ > 0) std::this_thread::yield();
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
  if (!room_for_all()) short_of_memory();
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
    if (code != Code::limit_exceeded) return;
    short_of_memory();
    return host_.enqueue_later(
        [self = shared_from_this(), memory, address] { self->host_.fault_later(self, memory, address); },
        true, memory_pause(kMemoryBackoffDoublings));
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
        Lease worker;
        self->serve_page(memory, page, *worker);
      },
      true);
}

// Books the page that was touched. Children are left out: their pages are filled at once, whoever touches
// them.
void Sandbox::record(ProcessMemory& memory, uint64_t page) {
  if (memory.pid() == 0) return;
  const std::lock_guard lock(mutex_);
  if (recorded_.size() < kMaxWorkingSetPages) recorded_.push_back(regions_.entry_of(page));
}

void Sandbox::serve_page(const std::shared_ptr<ProcessMemory>& memory, uint64_t page,
                         Rebuilder::Worker& worker, int tries) {
  if (told_short_of_memory_ && !room_for(kPageBytes)) return serve_again(memory, page, tries);
  // The page itself first: a thread waits for it. What is near comes while that runs on.
  const Code code = serve_pages(memory, page, page + 1, worker);
  if (code == Code::ok && !recording_afresh_ && !told_short_of_memory_) serve_around(memory, page, worker);
  if (code == Code::limit_exceeded) return serve_again(memory, page, tries);
  settle();
}

// The thread waits on, for as long as its memory cgroup has no room; nobody else does.
void Sandbox::serve_again(const std::shared_ptr<ProcessMemory>& memory, uint64_t page, int tries) {
  short_of_memory();
  host_.enqueue_later(
      [self = shared_from_this(), memory, page, tries] {
        Lease worker;
        self->serve_page(memory, page, *worker, tries + 1);
      },
      true, memory_pause(tries));
}

// What may be touched next. Without a working set nothing is guessed, so that the record holds what is
// touched and nothing else.
void Sandbox::serve_around(const std::shared_ptr<ProcessMemory>& memory, uint64_t page,
                           Rebuilder::Worker& worker) {
  const auto window = windows_.next(page);
  const uint64_t begin = std::max(window.begin, memory->first_page());
  const uint64_t end = std::min(window.end, memory->end_page());
  const uint64_t near = std::min(begin + FaultWindows::kBlockPages, end);
  (void)serve_pages(memory, begin, near, worker);
  if (near == end) return;
  // A walk: the rest comes from another thread, as this one is waited for by others.
  host_.enqueue(
      [self = shared_from_this(), memory, near, end] {
        Lease worker;
        if (!self->rebuilder_.all_local()) {
          std::vector<uint64_t> pages(end - near);
          std::iota(pages.begin(), pages.end(), near);
          (void)self->rebuilder_.fetch(pages, kFetchTimeout);  // a failure shows again when it is rebuilt
        }
        for (uint64_t p = near; p < end; p += FaultWindows::kBlockPages)
          (void)self->serve_pages(memory, p, std::min(p + FaultWindows::kBlockPages, end), *worker);
        self->settle();
      },
      true);
}

// At most a block of pages. A failure is dealt with here, but for limit_exceeded: there is no memory now.
// process_gone also when nobody wants them any more.
Code Sandbox::serve_pages(const std::shared_ptr<ProcessMemory>& memory, uint64_t begin, uint64_t end,
                          Rebuilder::Worker& worker) {
  if (state() == LiveState::lost || detached_ || memory->gone()) return Code::process_gone;
  uint64_t pages[FaultWindows::kBlockPages];
  size_t n = 0;
  for (uint64_t p = begin; p < end; ++p) pages[n++] = p;
  ClaimsOf claims(*memory);
  uint64_t placed = 0;
  const Code code = rebuild_patiently(worker, std::span(pages, n), claims, *memory, placed);
  demanded_ += placed;
  if (code == Code::process_gone)
    handle_exit(*memory);
  else if (code != Code::ok && code != Code::limit_exceeded)
    lose(code, kRebuildFailed);
  return code;
}

// A peer that is away may come back: the pages are asked for again, with pauses, until patience ends.
Code Sandbox::rebuild_patiently(Rebuilder::Worker& worker, std::span<const uint64_t> pages,
                                PageClaims& claims, ProcessMemory& memory, uint64_t& placed) {
  const auto deadline = Clock::now() + kPeerPatience;
  for (auto pause = kPeerBackoffFirst;; pause = std::min(pause * 2, kPeerBackoffMost)) {
    const Code code = rebuilder_.rebuild(worker, pages, claims, memory, placed);
    if (!passes(code) || Clock::now() > deadline || detached_ || state() == LiveState::lost) return code;
    std::this_thread::sleep_for(pause);
  }
}

// A list of pages as threads share it out: units in the order they are wanted, each of ascending pages of one
// process within one aligned block, so that what is stored together is unpacked once and placed in long runs.
struct Sandbox::Fill {
  struct Unit {
    uint32_t memory = 0;
    uint32_t begin = 0, end = 0;  // in `pages`
  };
  std::vector<std::shared_ptr<ProcessMemory>> memories;
  std::vector<uint64_t> pages;
  std::vector<Unit> units;
  int nice = 0;
  uint64_t bytes_per_s = 0;  // 0: unbounded
  std::atomic<uint64_t>* placed = nullptr;
  const char* failed = "";

  std::atomic<size_t> next{0};
  std::atomic<bool> short_of_memory{false};
  const Clock::time_point begin = Clock::now();
  // Helpers come when they have time, and none after the last unit was given out.
  std::mutex mutex;
  std::condition_variable done;
  size_t helping = 0;
  bool closed = false;
};

// Units in the order in which their first pages come.
std::shared_ptr<Sandbox::Fill> Sandbox::plan_fill(std::vector<std::shared_ptr<ProcessMemory>> memories,
                                                  std::span<const Wanted> wanted) const {
  constexpr uint32_t kNone = UINT32_MAX;
  const uint64_t blocks = file_->layout().page_count / Rebuilder::kBlockPages + 1;
  auto fill = std::make_shared<Fill>();
  std::vector<uint32_t> unit_of(blocks * memories.size(), kNone);
  for (const auto& w : wanted) {
    uint32_t& unit = unit_of[w.memory * blocks + w.page / Rebuilder::kBlockPages];
    if (unit == kNone) {
      unit = static_cast<uint32_t>(fill->units.size());
      fill->units.push_back({w.memory, 0, 0});
    }
    ++fill->units[unit].end;  // a count until all are known
  }
  uint32_t at = 0;
  for (auto& u : fill->units) {
    const uint32_t count = u.end;
    u.begin = u.end = at;
    at += count;
  }
  fill->pages.resize(at);
  for (const auto& w : wanted)
    fill->pages[fill->units[unit_of[w.memory * blocks + w.page / Rebuilder::kBlockPages]].end++] = w.page;
  for (const auto& u : fill->units) std::sort(fill->pages.begin() + u.begin, fill->pages.begin() + u.end);
  fill->memories = std::move(memories);
  return fill;
}

// Rebuilds units until `until` of them were given out. Stops early when the sandbox is lost, or there is no
// memory for them now.
void Sandbox::work(Fill& fill, size_t until) {
  Lease worker;
  while (fill.next.load() < until) {
    const size_t at = fill.next.fetch_add(1);
    if (at >= fill.units.size() || state() == LiveState::lost || detached_ || fill.short_of_memory) return;
    if (at % kUnitsPerLook == 0 && !room_for_all()) {
      fill.short_of_memory = true;
      return;
    }
    const auto& unit = fill.units[at];
    ProcessMemory& memory = *fill.memories[unit.memory];
    if (memory.gone()) continue;
    // The thread that opens a new stretch has all of its base pages fetched in one batch.
    const bool opens =
        at == 0 || unit.begin / kFetchAheadPages != fill.units[at - 1].begin / kFetchAheadPages;
    if (opens && !rebuilder_.all_local()) {
      const auto ahead = std::span(fill.pages).subspan(unit.begin);
      // A failure shows again, and counts, at its unit.
      (void)rebuilder_.fetch(ahead.first(std::min(kFetchAheadPages, ahead.size())), kFetchTimeout);
    }
    ClaimsOf claims(memory);
    uint64_t placed = 0;
    const auto pages = std::span(fill.pages).subspan(unit.begin, unit.end - unit.begin);
    const Code code = rebuild_patiently(*worker, pages, claims, memory, placed);
    *fill.placed += placed;
    if (code == Code::process_gone)
      handle_exit(memory);
    else if (code == Code::limit_exceeded)
      fill.short_of_memory = true;
    else if (code != Code::ok)
      return lose(code, fill.failed);
    if (fill.bytes_per_s != 0) {
      const double due_s = static_cast<double>(unit.end * kPageBytes) / static_cast<double>(fill.bytes_per_s);
      std::this_thread::sleep_until(
          fill.begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(due_s)));
    }
  }
}

// Has up to `helpers` of the server's threads work along.
void Sandbox::call_helpers(const std::shared_ptr<Fill>& fill, size_t helpers, bool urgent) {
  for (size_t i = 0; i < std::min(helpers, fill->units.size() - 1); ++i)
    host_.enqueue(
        [self = shared_from_this(), fill] {
          {
            const std::lock_guard lock(fill->mutex);
            if (fill->closed) return;
            ++fill->helping;
          }
          set_nice(fill->nice);
          self->work(*fill, fill->units.size());
          set_nice(0);
          const std::lock_guard lock(fill->mutex);
          if (--fill->helping == 0) fill->done.notify_all();
        },
        urgent);
}

// Works on what is left, then waits for the helpers.
void Sandbox::finish(Fill& fill) {
  set_nice(fill.nice);
  work(fill, fill.units.size());
  set_nice(0);
  std::unique_lock lock(fill.mutex);
  fill.closed = true;
  fill.done.wait(lock, [&] { return fill.helping == 0; });
}

// Where all bases are here, ready is said on the way: in the order in which pages were touched before, the
// request stays behind us. Where peers may keep us waiting, or be away, it is said when the set is in.
void Sandbox::prefetch(const RestoreOptions& options) {
  std::vector<std::shared_ptr<ProcessMemory>> own;
  for (auto& memory : memories())
    if (memory->pid() != 0) own.push_back(std::move(memory));
  std::vector<Wanted> wanted;
  for (uint64_t page : regions_.pages_of(options.working_set))
    for (uint32_t m = 0; m < own.size(); ++m)
      if (page >= own[m]->first_page() && page < own[m]->end_page()) wanted.push_back({m, page});
  const auto fill = plan_fill(std::move(own), wanted);
  if (fill->units.empty()) return;
  fill->placed = &prefetched_;
  fill->failed = "the working set could not be rebuilt";
  call_helpers(fill, cores() - 1, true);
  if (options.lazy && rebuilder_.all_local()) {
    const size_t first = std::max(fill->pages.size() / 2, kReadyPagesMin);
    size_t units = 0;
    while (units < fill->units.size() && fill->units[units].end < first) ++units;
    work(*fill, units);
    if (units < fill->units.size() && state() != LiveState::lost && !detached_) set_ready();
  }
  finish(*fill);
}

// Everything that is still out of `memories`, in address order. False when there is no memory for it now.
bool Sandbox::fill_rest(std::vector<std::shared_ptr<ProcessMemory>> memories, const RestoreOptions& options,
                        const char* failed) {
  std::vector<Wanted> wanted;
  for (uint32_t m = 0; m < memories.size(); ++m) {
    if (memories[m]->gone()) continue;
    for (uint64_t page : evicted_pages(*memories[m])) wanted.push_back({m, page});
  }
  const auto fill = plan_fill(std::move(memories), wanted);
  if (fill->units.empty()) return true;
  fill->placed = &background_;
  fill->failed = failed;
  fill->nice = options.lazy ? kBackgroundNice : 0;
  fill->bytes_per_s = options.background_bytes_per_s;
  call_helpers(fill, cores() - 1, !options.lazy);
  finish(*fill);
  if (fill->short_of_memory) short_of_memory();
  return !fill->short_of_memory;
}

void Sandbox::run(RestoreOptions options) {
  recording_afresh_ = options.working_set.empty();
  if (room_for_all())
    prefetch(options);
  else
    short_of_memory();
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
  run_rest(options, 0);
}

// Again and again while there is no memory for it: it is nobody's loss, and no thread of ours waits for it.
void Sandbox::run_rest(const RestoreOptions& options, int tries) {
  const bool wanted = state() != LiveState::lost && !detached_;
  if (wanted && !fill_rest(memories(), options, kRebuildFailed))
    return host_.enqueue_later(
        [self = shared_from_this(), options, tries] { self->run_rest(options, tries + 1); }, !options.lazy,
        memory_pause(tries));
  --running_;
  settle();
}

void Sandbox::run_child(const std::shared_ptr<ProcessMemory>& child, int tries) {
  RestoreOptions options;
  options.lazy = false;
  const bool wanted = state() != LiveState::lost && !detached_;
  if (wanted && !fill_rest({child}, options, "a forked child's page could not be rebuilt"))
    return host_.enqueue_later(
        [self = shared_from_this(), child, tries] { self->run_child(child, tries + 1); }, true,
        memory_pause(tries));
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
    if (state() != LiveState::restoring || running_ > 0 || detached_) return;
    ++running_;  // only one thread gets past here at a time
    settling_ = true;
  }
  const auto settled = [this] {
    {
      const std::lock_guard lock(mutex_);
      settling_ = false;
    }
    changed_.notify_all();
  };
  fault_point("restore.unregister");
  for (const auto& m : all) m->unregister_all();
  // A fork read just before may still be on its way to us. Its child is filled first; then we come again.
  while (draining_ > 0) std::this_thread::yield();
  if (memories().size() != all.size()) {
    --running_;
    settled();
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
  end_serving(&ProcessMemory::close);
  {
    const std::lock_guard lock(mutex_);
    state_ = LiveState::complete;
  }
  settled();
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
