// Many pages at once: cut into units, which several threads rebuild.
#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "serving/rebuild_work.h"
#include "serving/served_sandbox.h"

namespace medes {
namespace {

// A small working set is prefetched whole before the sandbox is let go.
constexpr size_t kReadyPagesMin = 1024;
// How long a base's node may be away before the sandbox counts as lost: an agent restarts in seconds.
constexpr std::chrono::seconds kPeerPatience{20};
constexpr std::chrono::milliseconds kPeerBackoffFirst{50}, kPeerBackoffMost{500};
constexpr size_t kUnitsPerLook = 16;  // between two looks at the room that a memory cgroup has

size_t cores() { return std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace

// A peer that is away may come back: the pages are asked for again, with pauses, until patience ends.
Code ServedSandbox::rebuild_patiently(Rebuilder::Worker& worker, std::span<const uint64_t> pages,
                                      Rebuilder::For what, PageClaims& claims, ProcessMemory& memory,
                                      uint64_t& placed) {
  const auto deadline = Clock::now() + kPeerPatience;
  for (auto pause = kPeerBackoffFirst;; pause = std::min(pause * 2, kPeerBackoffMost)) {
    const Code code = rebuilder_.rebuild(worker, pages, what, claims, memory, placed);
    if (!passes(code) || Clock::now() > deadline || detached_ || state() == LiveState::lost) return code;
    std::this_thread::sleep_for(pause);
  }
}

// A list of pages as threads share it out: units in the order they are wanted, each of ascending pages of one
// process within one aligned block, so that what is stored together is unpacked once and placed in long runs.
struct ServedSandbox::Fill {
  struct Unit {
    uint32_t memory = 0;
    uint32_t begin = 0, end = 0;  // in `pages`
  };
  std::vector<std::shared_ptr<ProcessMemory>> memories;
  std::vector<uint64_t> pages;
  std::vector<Unit> units;
  Rebuilder::For what = Rebuilder::For::once;
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
std::shared_ptr<ServedSandbox::Fill> ServedSandbox::plan_fill(
    std::vector<std::shared_ptr<ProcessMemory>> memories, std::span<const Wanted> wanted) const {
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
void ServedSandbox::rebuild_units(Fill& fill, size_t until) {
  WorkerLease worker;
  while (fill.next.load() < until) {
    const size_t at = fill.next.fetch_add(1);
    if (at >= fill.units.size() || state() == LiveState::lost || detached_ || fill.short_of_memory) return;
    // Where it was short once each looks for itself: what others place while one looks adds up, try by try.
    if ((at % kUnitsPerLook == 0 || told_short_of_memory_) && !room_for_all()) {
      fill.short_of_memory = true;
      return;
    }
    const auto& unit = fill.units[at];
    ProcessMemory& memory = *fill.memories[unit.memory];
    if (memory.gone()) continue;
    MemoryClaims claims(memory);
    uint64_t placed = 0;
    const auto pages = std::span(fill.pages).subspan(unit.begin, unit.end - unit.begin);
    const Code code = rebuild_patiently(*worker, pages, fill.what, claims, memory, placed);
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
void ServedSandbox::call_helpers(const std::shared_ptr<Fill>& fill, size_t helpers, bool urgent) {
  for (size_t i = 0; i < std::min(helpers, fill->units.size() - 1); ++i)
    server_.enqueue(
        [self = shared_from_this(), fill] {
          {
            const std::lock_guard lock(fill->mutex);
            if (fill->closed) return;
            ++fill->helping;
          }
          set_nice(fill->nice);
          self->rebuild_units(*fill, fill->units.size());
          set_nice(0);
          const std::lock_guard lock(fill->mutex);
          if (--fill->helping == 0) fill->done.notify_all();
        },
        urgent);
}

// (blocks) Fetches what units are made of, in their order, while helpers rebuild those whose base pages are
// here. A failure shows again, and counts, at its unit. True when all is here.
bool ServedSandbox::fetch_units(Fill& fill) {
  WorkerLease worker;
  const auto stop = [&] { return state() == LiveState::lost || detached_ || fill.short_of_memory; };
  return rebuilder_.fetch_in_order(*worker, fill.pages, fill.what, stop) == Code::ok && !stop();
}

// Works on what is left, then waits for the helpers.
void ServedSandbox::finish_fill(Fill& fill) {
  set_nice(fill.nice);
  rebuild_units(fill, fill.units.size());
  set_nice(0);
  std::unique_lock lock(fill.mutex);
  fill.closed = true;
  fill.done.wait(lock, [&] { return fill.helping == 0; });
}

// Once all base pages are here, ready is said on the way: in the order in which pages were touched before,
// the request stays behind us. While peers may keep us waiting, or be away, it is not.
void ServedSandbox::prefetch(const RestoreOptions& options) {
  std::vector<std::shared_ptr<ProcessMemory>> own;
  for (auto& memory : memories())
    if (!memory->is_forked_child()) own.push_back(std::move(memory));
  std::vector<Wanted> wanted;
  for (uint64_t page : regions_.pages_of(options.working_set))
    for (uint32_t m = 0; m < own.size(); ++m)
      if (page >= own[m]->first_page() && page < own[m]->end_page()) wanted.push_back({m, page});
  const auto fill = plan_fill(std::move(own), wanted);
  if (fill->units.empty()) return;
  fill->what = Rebuilder::For::working_set;
  fill->placed = &prefetched_;
  fill->failed = "the working set could not be rebuilt";
  call_helpers(fill, cores() - 1, true);
  if (fetch_units(*fill) && options.lazy) {
    const size_t first = std::max(fill->pages.size() / 2, kReadyPagesMin);
    size_t units = 0;
    while (units < fill->units.size() && fill->units[units].end < first) ++units;
    rebuild_units(*fill, units);
    if (units < fill->units.size() && state() != LiveState::lost && !detached_) set_ready();
  }
  finish_fill(*fill);
}

// Everything that is still out of `memories`, in address order. False when there is no memory for it now.
bool ServedSandbox::fill_rest(std::vector<std::shared_ptr<ProcessMemory>> memories,
                              const RestoreOptions& options, const char* failed) {
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
  set_nice(fill->nice);
  (void)fetch_units(*fill);
  finish_fill(*fill);
  if (fill->short_of_memory) short_of_memory();
  return !fill->short_of_memory;
}

}  // namespace medes
