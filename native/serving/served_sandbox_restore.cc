// A restore from its call to its completion: the working set, the rest behind it, forked children, the end.
#include <algorithm>
#include <mutex>
#include <thread>

#include "common/error.h"
#include "common/fault_point.h"
#include "serving/rebuild_work.h"
#include "serving/served_sandbox.h"

namespace medes {
namespace {

// The rest of a lazy restore waits until the first request has touched what it needs: no demand fault for
// kQuiet, at most kHoldMost. So the request has the cores, and the recorded working set is whole. The first
// restore of a function has all of it to record, one fault after the other, and all later ones go by that.
// Its request may be on its way yet, and a busy machine makes pauses of its own.
constexpr std::chrono::milliseconds kQuiet{15}, kHoldMost{200};
constexpr std::chrono::milliseconds kQuietAfresh{100}, kHoldMostAfresh{1000};
// While a request runs its own faults fetch over the same connection: they wait for one of these batches at
// most.
constexpr size_t kFetchBesidePages = 128;

}  // namespace

void ServedSandbox::drain(const std::shared_ptr<ProcessMemory>& memory, std::vector<uint64_t>& faults) {
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
void ServedSandbox::add_child(std::shared_ptr<ProcessMemory> child) {
  add_memory(child);
  {
    const std::lock_guard lock(mutex_);
    if (detached_) return;  // whoever lets go of it waits for us, and puts the child aside
  }
  server_.watch(shared_from_this(), child);
  ++running_;
  wake_by_fault();
  server_.enqueue([self = shared_from_this(), child] { self->run_child(child, 0); }, true);
}

void ServedSandbox::run(RestoreOptions options) {
  recording_afresh_ = options.working_set.empty();
  if (room_for_all()) {
    told_short_of_memory_ = false;  // it was when it was touched, perhaps
    prefetch(options);
  } else {
    short_of_memory();
  }
  fault_point("restore.prefetched");
  if (state() == LiveState::lost || detached_) return;
  if (!options.lazy) return run_background(options);
  set_ready();
  server_.enqueue(
      [self = shared_from_this(), options = std::move(options)] { self->run_background(options); }, false);
}

// (blocks) See kQuiet. Runs on a thread for bulk work only, so nobody's fault waits behind it.
void ServedSandbox::hold_background() {
  const auto begin_us = since_restore_us();
  const auto us = [](auto d) { return static_cast<uint64_t>(std::chrono::microseconds(d).count()); };
  const uint64_t quiet_us = us(recording_afresh_ ? kQuietAfresh : kQuiet);
  const uint64_t most_us = us(recording_afresh_ ? kHoldMostAfresh : kHoldMost);
  while (state() == LiveState::restoring && !detached_) {
    const uint64_t now_us = since_restore_us();
    const uint64_t active_us = std::max(begin_us, last_fault_us_.load());
    if (now_us - begin_us >= most_us || now_us >= active_us + quiet_us) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Remote base pages come in ahead of the rest: a demand fault then finds them there.
void ServedSandbox::fetch_ahead() {
  WorkerLease worker;
  for (const auto& memory : memories()) {
    std::vector<uint64_t> pages = evicted_pages(*memory);
    for (size_t at = 0; at < pages.size(); at += kFetchBesidePages) {
      if (state() != LiveState::restoring || detached_ || memory->gone()) return;
      const auto stretch = std::span(pages).subspan(at, std::min(kFetchBesidePages, pages.size() - at));
      // A failure shows again, and counts, when it is rebuilt.
      (void)rebuilder_.fetch(*worker, stretch, Rebuilder::For::once, kFetchTimeout);
    }
  }
}

void ServedSandbox::run_background(const RestoreOptions& options) {
  if (options.lazy && !rebuilder_.all_local()) {
    // What is fetched takes processors, here and at the holder. Where the working set was known few faults
    // are left, and each asks for its block in one batch: the request comes first.
    if (!recording_afresh_) hold_background();
    fetch_ahead();
  }
  if (options.lazy) hold_background();
  run_rest(options, 0);
}

// Again and again while there is no memory for it: it is nobody's loss, and no thread of ours waits for it.
void ServedSandbox::run_rest(const RestoreOptions& options, int tries) {
  const bool wanted = state() != LiveState::lost && !detached_;
  if (wanted && !fill_rest(memories(), options, kRebuildFailed))
    return server_.enqueue_later(
        [self = shared_from_this(), options, tries] { self->run_rest(options, tries + 1); }, !options.lazy,
        memory_pause(tries));
  --running_;
  try_complete();
}

void ServedSandbox::run_child(const std::shared_ptr<ProcessMemory>& child, int tries) {
  RestoreOptions options;
  options.lazy = false;
  const bool wanted = state() != LiveState::lost && !detached_;
  if (wanted && !fill_rest({child}, options, "a forked child's page could not be rebuilt"))
    return server_.enqueue_later(
        [self = shared_from_this(), child, tries] { self->run_child(child, tries + 1); }, true,
        memory_pause(tries));
  --running_;
  try_complete();
}

void ServedSandbox::try_complete() {
  if (state() != LiveState::restoring || running_ > 0 || detached_) return;
  if (anything_missing()) return;
  const auto all = memories();
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
    return try_complete();
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
  server_.emit(file_->path(), "complete");
  for (const auto& m : all)
    if (!m->huge_pages().ranges.empty())
      server_.enqueue(
          [m] {
            set_nice(kBackgroundNice);
            (void)join_huge_pages(m->huge_pages());
            set_nice(0);
          },
          false);
}

}  // namespace medes
