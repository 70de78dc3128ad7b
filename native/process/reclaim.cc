#include "process/reclaim.h"

#include <algorithm>

#include "common/error.h"
#include "common/fault_point.h"
#include "common/wiped.h"
#include "image/foreign_memory.h"
#include "process/give_back.h"
#include "procfs/memory_sharers.h"
#include "procfs/proc.h"

namespace medes {
namespace {

using Clock = std::chrono::steady_clock;

// Nobody waits for this op: a thread that does not stop soon, in a call that waits for us perhaps, goes on.
constexpr std::chrono::milliseconds kStopTimeout{100};
constexpr std::chrono::seconds kStandstillMost{10};
constexpr size_t kPagesPerRead = 64;

}  // namespace

bool ReclaimOp::worth_it() {
  uint64_t pages = 0;
  for (const auto& memory : sandbox_.memories()) {
    if (memory->is_forked_child() || memory->gone() || memory->fd() < 0 || memory->uffd().memory_gone())
      continue;
    Process p;
    p.memory = memory, p.pid = memory->pid(), p.index = memory->process();
    p.pages = sandbox_.reclaim_candidates(*memory, result_.tick_pages);
    keep_unchanged(p);
    // Neighbours, as they lie: they go in few ranges, and those left are another op's.
    if (options_.pages_max != 0) p.pages.resize(std::min(p.pages.size(), options_.pages_max - pages));
    pages += p.pages.size();
    if (!p.pages.empty()) processes_.push_back(std::move(p));
  }
  return pages > 0 && pages >= options_.pages_min;
}

// Leaves in `pages` those whose bytes are what is stored.
void ReclaimOp::keep_unchanged(Process& p) {
  static thread_local ThreadScratch<PageBuffer> thread_buffer(kPagesPerRead);
  const PageBuffer& buffer = thread_buffer.use();
  const ForeignMemory memory(p.pid);
  const EncodedImage& stored = sandbox_.file()->encoded();
  std::vector<uint64_t> same, changed;
  for (size_t i = 0, run = 0; i < p.pages.size(); i += run) {
    const uint64_t page = p.pages[i], address = p.memory->address_of(page);
    for (run = 1; run < kPagesPerRead && i + run < p.pages.size() && p.pages[i + run] == page + run &&
                  p.memory->address_of(page + run) == address + run * kPageBytes;)
      ++run;
    const ssize_t got = address != 0 ? memory.read(address, buffer.data(), run * kPageBytes) : 0;
    for (size_t k = 0; k < run; ++k) {
      const bool read = got > 0 && k < static_cast<size_t>(got) / kPageBytes;
      (read && stored.matches(page + k, buffer.data() + k * kPageBytes) ? same : changed).push_back(page + k);
    }
  }
  result_.changed_pages += changed.size();
  sandbox_.keep_changed(changed);
  p.pages = std::move(same);
}

void ReclaimOp::run() {
  std::vector<pid_t> pids;
  for (auto& p : processes_) {
    static_cast<StoppedProcess&>(p) =
        StoppedProcess::find(p.index, sandbox_.file()->layout().processes[p.index]);
    pids.push_back(p.pid);
  }
  MemorySharers sharers(pids);
  fault_point("reclaim.begin");
  const auto begin = Clock::now();
  StoppedProcesses stop(pids, begin + kStopTimeout);
  stopped_since_ = stop.since();
  // Injectors put their threads back while these are still stopped, also on the way out of an error.
  struct Finish {
    std::vector<Process>& processes;
    ~Finish() {
      for (auto& p : processes) p.injector.reset();
    }
  } finish{processes_};
  fault_point("reclaim.stopped");
  sharers.look_again();  // nobody who stands still makes a sharer from here on
  // Another program in the process may have the same bytes at the same addresses, and nobody serves it.
  for (const auto& p : processes_)
    if (p.memory->uffd().memory_gone())
      throw Error(Code::process_gone, "it began another program", p.object());
  for (auto& p : processes_) {
    p.take(stop, begin + kStandstillMost, options_.abandoned);
    UffdRecord& record = sandbox_.file()->uffds()[p.index];
    record.frame_address = p.injector->frame_address();
    p.find_what_stays(stop, p.memory->uffd(), record, result_.notes);
    keep_what_stays(p);
    keep_unchanged(p);
  }
  for (auto& p : processes_) take_away(p);
}

void ReclaimOp::keep_what_stays(Process& p) {
  std::erase_if(p.pages, [&](uint64_t page) {
    size_t from = 0;  // moved pages are not in the order of their addresses
    return p.keeps(p.memory->address_of(page), from);
  });
}

void ReclaimOp::take_away(Process& p) {
  const auto ranges = p.memory->begin_reclaim(p.pages);
  fault_point("reclaim.marked");
  std::vector<PageSpan> stayed;
  const auto end = [&] {
    sandbox_.reclaim_step();
    p.memory->end_reclaim(stayed);
    for (const uint64_t page : p.pages)
      if (p.memory->state(page) == PageState::evicted) taken_.push_back(page);
    result_.reclaimed_pages = taken_.size();
    for (uint64_t address : p.faults) p.memory->wake(address);  // they fault once more, and are served
  };
  try {
    GiveBack(p, p.memory->uffd(), sandbox_.file()->uffds()[p.index].fd, result_.notes, [&](auto there) {
      stayed.insert(stayed.end(), there.begin(), there.end());
    }).run(ranges);
  } catch (const Error& e) {
    if (e.code == Code::cancelled) throw;  // the call may yet be made: what is marked stays marked
    try {
      for (const auto& r : ranges) Pagemap(p.pid).present_pages(r.begin, r.end, stayed);
    } catch (const Error&) {
      // It is gone, or there is no descriptor to look with: what counts as out and is not is found when it
      // comes.
    }
    end();
    throw;
  }
  fault_point("reclaim.taken");
  end();
  p.injector->finish();
  fault_point("reclaim.done");
}

}  // namespace medes
