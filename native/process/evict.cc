#include "process/evict.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>

#include "common/error.h"
#include "common/fault_point.h"
#include "common/thread_pool.h"
#include "common/wiped.h"
#include "image/foreign_memory.h"
#include "process/make_anonymous.h"
#include "process/make_uffd.h"
#include "procfs/memory_sharers.h"
#include "procfs/proc.h"
#include "restore/working_set.h"
#include "serving/keeper.h"

namespace medes {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kStopTimeout{1000};
// How long a sandbox may stand still until nothing more is begun: one with little processor time does.
constexpr std::chrono::seconds kStandstillMost{10};
constexpr size_t kComparePages = 64;  // one read of the sandbox's memory: stays in the second-level cache

uint64_t us_since(Clock::time_point begin) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count());
}

}  // namespace

EvictOp::EvictOp(const MemoryImage& image, SandboxFile& file, const EvictOptions& options,
                 const std::map<pid_t, OwnUffd>& known, const std::atomic<bool>* cancelled)
    : image_(image), file_(file), options_(options), known_(known), cancelled_(cancelled) {
  if (file.layout().page_count != image.page_count() ||
      file.layout().processes.size() != image.layout().processes.size())
    throw Error(Code::invalid_argument, "the sandbox file is not of this image", file.path());
  for (const auto s : std::span(file.uffds()))
    if (s.fd >= 0) throw Error(Code::already_exists, "the sandbox file was used before", file.path());
}

void EvictOp::check_cancelled() const {
  if (cancelled_ != nullptr && cancelled_->load(std::memory_order_acquire))
    throw Error(Code::cancelled, "activity arrived during the dedup op", file_.path());
}

// Everything that can be found out while the sandbox still runs.
void EvictOp::find_text() {
  const auto& layouts = image_.layout().processes;
  for (uint32_t i = 0; i < layouts.size(); ++i) {
    Process p;
    static_cast<StoppedProcess&>(p) = StoppedProcess::find(i, layouts[i]);
    processes_.push_back(std::move(p));
  }
}

void EvictOp::run(const std::function<void()>& before_release) {
  check_cancelled();
  find_text();
  find_tick_set();
  std::vector<pid_t> pids;
  for (const auto& p : processes_) pids.push_back(p.pid);
  MemorySharers sharers(pids);
  fault_point("evict.begin");
  const auto begin = Clock::now();
  StoppedProcesses stop(pids, begin + kStopTimeout);
  stopped_since_ = stop.since();
  fault_point("evict.stopped");
  result_.threads = stop.threads().size();
  result_.processes = processes_.size();
  sharers.look_again();  // nobody who stands still makes a sharer from here on
  // Injectors put their threads back while these are still stopped, also on the way out of an error.
  struct Finish {
    std::vector<Process>& processes;
    ~Finish() {
      for (auto& p : processes) p.injector.reset();
    }
  } finish{processes_};
  deadline_ = begin + kStandstillMost;
  for (auto& p : processes_) plan(p, stop);
  check_cancelled();
  const auto evict_begin = Clock::now();
  try {
    for (auto& p : processes_) {
      set_states(p, PageState::evicting);
      fault_point("evict.marked");
      register_mappings(p);
      fault_point("evict.registered");
    }
    check_cancelled();
  } catch (...) {
    roll_back();
    throw;
  }
  for (auto& p : processes_) {
    try {
      evict(p);
    } catch (const Error& e) {
      // It was killed under our hands; the others are evicted or will be, and are served as usual.
      if (e.code != Code::process_gone) throw;
      set_states(p, PageState::evicted);
      p.killed = true;
    }
  }
  result_.evict_us = us_since(evict_begin);
  for (auto& p : processes_) {
    auto memory = std::make_shared<ProcessMemory>(p.pid, p.index, file_.layout(), std::move(p.uffd),
                                                  file_.page_states());
    for (const auto& r : p.registered) memory->add_segment(r.begin, r.end);
    memory->keep_record(file_.changes()[p.index], file_.uffds()[p.index].stop, file_.path());
    memory->set_huge_pages(
        {p.pid, image_.layout().processes[p.index].start_time_ticks, huge_ranges(p.huge, p.registered)});
    memory->count_missing();
    if (p.killed) memory->mark_gone();
    result_.evicted_pages += memory->missing();
    for (uint64_t address : p.faults) memory->wake(address);  // they fault once more, and are served
    memories_.push_back(std::move(memory));
    p.injector.reset();
  }
  result_.resident_pages = image_.page_count() - result_.evicted_pages;
  if (options_.hold_frozen)
    for (const auto& p : processes_) (void)kill(p.pid, SIGSTOP);
  fault_point("evict.before_release");
  before_release();
}

void EvictOp::plan(Process& p, const StoppedProcesses& stop) {
  p.take(stop, deadline_, options_.abandoned);
  open_uffd(p);
  fault_point("evict.uffd");
  p.find_what_stays(stop, p.uffd, file_.uffds()[p.index], result_.notes);
  check_cancelled();
  if (make_anonymous(*p.injector, p.pid, image_.file_runs(p.index), p.vmas, result_.notes) != 0)
    p.vmas = read_maps(p.pid);
  const Pagemap pagemap(p.pid);
  for (const auto& v : p.vmas)
    if (is_anonymous(v)) pagemap.private_pages(v.begin, v.end, p.present, &p.huge);
  compare(p, candidates(p));
}

void EvictOp::open_uffd(Process& p) {
  const uint64_t start = image_.layout().processes[p.index].start_time_ticks;
  UffdRecord& record = file_.uffds()[p.index];
  record.pid = p.pid;
  record.start_time_ticks = start;
  record.frame_address = p.injector->frame_address();
  int fd = -1;
  if (auto it = known_.find(p.pid); it != known_.end() && it->second.start_time_ticks == start) {
    try {
      Uffd old = Uffd::of_process(p.pid, it->second.fd);
      if (old.inode() == it->second.inode && it->second.inode != 0)
        p.uffd = std::move(old), fd = it->second.fd;
    } catch (const Error&) {  // the program closed it: a new one is made
    }
  }
  if (fd < 0) {
    fd = make_userfaultfd(*p.injector, p.pid);
    p.uffd = Uffd::of_process(p.pid, fd);
  }
  (void)p.uffd.enable();
  record.inode = p.uffd.inode();
  const Holder keeper = keeper::holder_of(p.uffd.fd());
  file_.changes()[p.index].kept_fd = keeper.fd;
  record.keeper = keeper.pid;
  std::atomic_thread_fence(std::memory_order_release);
  record.fd = fd;
  own_uffds_[p.pid] = {fd, start, record.inode};
}

void EvictOp::find_tick_set() {
  stays_.assign(image_.page_count(), false);
  if (options_.tick_set.empty()) return;
  // In the order in which they were touched: a set that grew beyond that is more than a tick.
  const auto pages = RegionIndex(image_.layout()).pages_of(options_.tick_set);
  for (const uint64_t page : std::span(pages).first(std::min<size_t>(pages.size(), stays_.size() / 4)))
    stays_[page] = true;
}

// Image pages that are still private memory in an evictable mapping and need not stay.
std::vector<uint64_t> EvictOp::candidates(Process& p) {
  std::vector<uint64_t> out;
  size_t span = 0, keep = 0;
  for (const auto& run : image_.layout().runs) {
    if (run.process != p.index) continue;
    for (uint64_t i = 0; i < run.count; ++i) {
      const uint64_t address = run.address + i * kPageBytes;
      while (span < p.present.size() &&
             p.present[span].address + p.present[span].count * kPageBytes <= address)
        ++span;
      if (span == p.present.size() || p.present[span].address > address) {
        ++result_.changed_pages;
        continue;
      }
      const bool stays = p.keeps(address, keep);
      if (stays_[run.first_page + i])
        ++result_.tick_pages;
      else if (!stays)
        out.push_back(run.first_page + i);
    }
  }
  return out;
}

// Keeps those candidates whose bytes are still those that were encoded.
void EvictOp::compare(Process& p, std::vector<uint64_t> candidates) {
  const size_t blocks = (candidates.size() + kComparePages - 1) / kComparePages;
  std::vector<uint8_t> same(candidates.size(), 0);
  const auto& layout = image_.layout();
  const ForeignMemory memory(p.pid);
  ThreadPool::shared().parallel_for(blocks, 16, [&](size_t first, size_t last) {
    static thread_local ThreadScratch<PageBuffer> thread_buffer(kComparePages);
    const PageBuffer& buffer = thread_buffer.use();
    for (size_t b = first; b < last; ++b) {
      const size_t at = b * kComparePages;
      const size_t n = std::min(kComparePages, candidates.size() - at);
      for (size_t i = 0, run = 0; i < n; i += run) {
        const uint64_t page = candidates[at + i];
        for (run = 1;
             i + run < n && candidates[at + i + run] == page + run && layout.adjacent(page + run - 1);)
          ++run;
        const PageRun& whole = layout.run_of(page);
        const uint64_t address = whole.address + (page - whole.first_page) * kPageBytes;
        const ssize_t got = memory.read(address, buffer.data(), run * kPageBytes);
        for (size_t j = 0; got > 0 && j < static_cast<size_t>(got) / kPageBytes; ++j)
          same[at + i + j] = image_.is_encoded(page + j, buffer.data() + j * kPageBytes);
      }
    }
  });
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (same[i])
      p.pages.push_back(candidates[i]);
    else
      ++result_.changed_pages;
  }
}

void EvictOp::set_states(const Process& p, PageState state) {
  const auto states = file_.page_states();
  for (uint64_t page : p.pages) states[page].store(static_cast<uint8_t>(state), std::memory_order_release);
}

// Whole mappings that hold pages to evict. A mapping the kernel does not take (it belongs to another
// userfaultfd, or is of a kind that cannot be registered) stays, with its pages.
void EvictOp::register_mappings(Process& p) {
  const auto& layout = image_.layout();
  std::vector<uint64_t> going;
  going.reserve(p.pages.size());
  size_t vma = 0;
  for (size_t i = 0; i < p.pages.size();) {
    const PageRun& run = layout.run_of(p.pages[i]);
    const uint64_t address = run.address + (p.pages[i] - run.first_page) * kPageBytes;
    while (p.vmas[vma].end <= address) ++vma;
    const Vma& v = p.vmas[vma];
    const int err = p.uffd.register_missing(v.begin, v.end);
    const size_t first = i;
    for (; i < p.pages.size(); ++i) {
      const PageRun& r = layout.run_of(p.pages[i]);
      if (r.address + (p.pages[i] - r.first_page) * kPageBytes >= v.end) break;
    }
    if (err == 0) {
      p.registered.push_back({v.begin, v.end});
      going.insert(going.end(), p.pages.begin() + static_cast<ptrdiff_t>(first),
                   p.pages.begin() + static_cast<ptrdiff_t>(i));
      continue;
    }
    if (err == ESRCH) throw Error(Code::process_gone, "the process has exited", p.object());
    for (size_t k = first; k < i; ++k)
      file_.page_states()[p.pages[k]].store(static_cast<uint8_t>(PageState::resident));
    result_.notes.push_back(p.object() + ": a mapping of " + std::to_string(i - first) +
                            " pages cannot be registered (" + std::strerror(err) + ")");
  }
  p.pages = std::move(going);
}

void EvictOp::roll_back() {
  for (auto& p : processes_) {
    for (const auto& r : p.registered) (void)p.uffd.unregister(r.begin, r.end);
    set_states(p, PageState::resident);
  }
}

// Few large ranges: neighbours in one mapping, or in mappings that touch, are joined over addresses that hold
// nothing, never over a page that stays.
std::vector<AddressRange> EvictOp::runs_to_discard(const Process& p) const {
  const auto& layout = image_.layout();
  std::vector<AddressRange> out;
  size_t region = 0, span = 0;
  for (uint64_t page : p.pages) {
    const PageRun& run = layout.run_of(page);
    const uint64_t address = run.address + (page - run.first_page) * kPageBytes;
    bool connected = true;
    for (; p.registered[region].end <= address; ++region)
      connected &= p.registered[region].end == p.registered[region + 1].begin;
    bool joined = false;
    if (!out.empty() && connected) {
      // Any private page present between the last range and this one must stay.
      while (span < p.present.size() &&
             p.present[span].address + p.present[span].count * kPageBytes <= out.back().end)
        ++span;
      joined = out.back().end == address || span == p.present.size() ||
               std::max(p.present[span].address, out.back().end) >= address;
    }
    if (joined)
      out.back().end = address + kPageBytes;
    else
      out.push_back({address, address + kPageBytes});
  }
  return out;
}

void EvictOp::evict(Process& p) {
  GiveBack(p, p.uffd, file_.uffds()[p.index].fd, result_.notes, [&](auto there) {
    keep_resident(p, there);
  }).run(runs_to_discard(p));
  fault_point("evict.discarded");
  set_states(p, PageState::evicted);
  p.injector->finish();
  fault_point("evict.evicted");
}

// What could not go is the sandbox's own.
void EvictOp::keep_resident(Process& p, std::span<const PageSpan> there) {
  std::vector<uint64_t> stay;
  for (const auto& span : there)
    for (uint64_t i = 0; i < span.count; ++i) {
      const uint64_t page = image_.layout().find(p.index, span.address + i * kPageBytes);
      if (page == ImageLayout::kNoPage || !std::binary_search(p.pages.begin(), p.pages.end(), page)) continue;
      file_.page_states()[page].store(static_cast<uint8_t>(PageState::resident));
      stay.push_back(page);
    }
  std::sort(stay.begin(), stay.end());
  std::erase_if(p.pages, [&](uint64_t page) { return std::binary_search(stay.begin(), stay.end(), page); });
}

}  // namespace medes
