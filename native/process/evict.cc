#include "process/evict.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

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
#include "tracing/frozen.h"
#include "tracing/injection_area.h"
#include "tracing/kernel_ranges.h"

namespace medes {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kStopTimeout{1000};
// How long a sandbox may stand still until nothing more is begun: one with little processor time does.
constexpr std::chrono::seconds kStandstillMost{10};
constexpr size_t kComparePages = 64;  // one read of the sandbox's memory: stays in the second-level cache
constexpr uint64_t kPidfdSelf =
    static_cast<uint64_t>(-10000);  // PIDFD_SELF_THREAD; the headers here are older
constexpr size_t kDiscardsPerCall = Injector::kScratchBytes / sizeof(iovec);

std::string pid_object(pid_t pid) { return "pid " + std::to_string(pid); }

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
    const pid_t pid = layouts[i].pid;
    if (pid <= 0) throw Error(Code::invalid_argument, "the image is not of a process", file_.path());
    if (process_start_time(pid) != layouts[i].start_time_ticks)
      throw Error(Code::process_gone, "the process has exited; its number belongs to another",
                  pid_object(pid));
    require_thawed(pid);
    Process p;
    p.index = i, p.pid = pid;
    p.gadgets = find_gadgets(pid, layouts[i].vmas);
    p.area = InjectionArea::find(pid);
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
  const auto threads = stop.threads_of(p.pid);
  if (threads.empty()) throw Error(Code::process_gone, "the process has exited", pid_object(p.pid));
  if (threads.front().tid != p.pid && live_thread(p.pid) != p.pid)  // throws when all of it is being killed
    throw Error(Code::unsupported, "its main thread has exited while others run on", pid_object(p.pid));
  p.vmas = read_maps(p.pid);
  // Before calls are injected: what the thread that makes them sleeps in is to be seen, too.
  {
    const ForeignMemory memory(p.pid);
    for (const auto& t : threads) add_kernel_ranges(t, memory, p.keep);
  }
  p.injector = inject(threads.front(), p.gadgets, p.vmas, p.area, deadline_, options_.abandoned);
  p.vmas = read_maps(p.pid);
  open_uffd(p);
  // Stopped as they are by somebody else's signal they need none of ours, and would not be continued by us.
  const bool group_stopped =
      std::any_of(threads.begin(), threads.end(), [](const Tracee& t) { return t.group_stopped; });
  if (threads.size() > 1 && !group_stopped) p.injector->has_others(file_.uffds()[p.index].stop);
  fault_point("evict.uffd");
  if (move_out_of(p).unmap_left(p.vmas)) p.vmas = read_maps(p.pid);
  if (const auto area = InjectionArea::find(p.pid)) p.keep.push_back(area->range());
  keep_pinned(p, threads);
  std::sort(p.keep.begin(), p.keep.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  check_cancelled();
  if (make_anonymous(*p.injector, p.pid, image_.file_runs(p.index), p.vmas, result_.notes) != 0)
    p.vmas = read_maps(p.pid);
  const Pagemap pagemap(p.pid);
  for (const auto& v : p.vmas)
    if (is_anonymous(v)) pagemap.private_pages(v.begin, v.end, p.present, &p.huge);
  compare(p, candidates(p));
}

// Where something may pin memory, each page is asked for as it goes (process/move_out.h), which only works
// where the program may write: what is read-only by now may have been pinned before.
void EvictOp::keep_pinned(Process& p, std::span<const Tracee> threads) {
  const Pinned pinned = find_pinned(p.pid, p.vmas, result_.notes);
  for (const auto& r : pinned.ranges)
    p.keep.push_back({r.begin / kPageBytes * kPageBytes, (r.end + kPageBytes - 1) / kPageBytes * kPageBytes});
  p.may_pin = pinned.may_pin;
  if (p.may_pin.empty() && uses_io_uring(*p.injector, threads)) p.may_pin = "io_uring";
  if (p.may_pin.empty()) return;
  if (!can_move_out())
    throw Error(Code::unsupported,
                "its memory may be pinned (" + p.may_pin + "), and the kernel cannot tell which",
                pid_object(p.pid), "Linux 6.8 or later is needed");
  for (const auto& v : p.vmas)
    if (is_anonymous(v) && (v.prot & PROT_WRITE) == 0) p.keep.push_back({v.begin, v.end});
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
      while (keep < p.keep.size() && p.keep[keep].end <= address) ++keep;
      bool stays = false;  // ranges may overlap: look at all that begin at or before this page
      for (size_t k = keep; k < p.keep.size() && p.keep[k].begin <= address; ++k)
        stays |= p.keep[k].contains(address);
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
    if (err == ESRCH) throw Error(Code::process_gone, "the process has exited", pid_object(p.pid));
    for (size_t k = first; k < i; ++k)
      file_.page_states()[p.pages[k]].store(static_cast<uint8_t>(PageState::resident));
    result_.notes.push_back(pid_object(p.pid) + ": a mapping of " + std::to_string(i - first) +
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

// An injected call costs some wake-ups of two threads, so one call gives back as many ranges as the kernel
// lets it.
void EvictOp::discard(Process& p, std::span<const AddressRange> ranges) {
  for (size_t i = 0; i < ranges.size();) {
    const size_t together =
        discard_together(p, ranges.subspan(i, std::min(ranges.size() - i, kDiscardsPerCall)));
    i += together;
    if (together == 0) discard_alone(p, ranges[i++]);
  }
}

long EvictOp::call_and_drain(Process& p, long number, std::span<const uint64_t> arguments) {
  uffd_msg messages[16];
  // The call waits until its events have been read. Nobody but us can be their sender: all threads stand
  // still. Faults are of readers outside (process_vm_readv, /proc/PID/mem), who wait for what we answer.
  const long result = p.injector->call_alone(number, arguments, [&] {
    fault_point("evict.discarding");
    const size_t n = p.uffd.read_events(messages);
    for (size_t i = 0; i < n; ++i)
      if (messages[i].event == UFFD_EVENT_PAGEFAULT) p.faults.push_back(messages[i].arg.pagefault.address);
    if (n == 0) sched_yield();
  });
  fault_point("evict.discarded_one");
  return result;
}

// Returns how many ranges, from the first on, are given back: none where the kernel cannot (Linux
// before 6.14), or where the first one has to be looked at by itself.
size_t EvictOp::discard_together(Process& p, std::span<const AddressRange> ranges) {
  if (!discards_together_ || ranges.size() < 2) return 0;
  iovec vector[kDiscardsPerCall];
  for (size_t i = 0; i < ranges.size(); ++i)
    vector[i] = {reinterpret_cast<void*>(ranges[i].begin), ranges[i].end - ranges[i].begin};
  p.injector->write_scratch(0, vector, ranges.size() * sizeof(iovec));
  const uint64_t arguments[] = {kPidfdSelf, p.injector->scratch(), ranges.size(), MADV_DONTNEED, 0};
  const long bytes = call_and_drain(p, SYS_process_madvise, arguments);
  if (bytes == -EBADF || bytes == -ENOSYS) discards_together_ = false;
  uint64_t left = bytes > 0 ? static_cast<uint64_t>(bytes) : 0;
  size_t done = 0;
  for (; done < ranges.size() && vector[done].iov_len <= left; ++done) left -= vector[done].iov_len;
  return done;
}

void EvictOp::discard_alone(Process& p, const AddressRange& r) {
  const uint64_t arguments[] = {r.begin, r.end - r.begin, MADV_DONTNEED};
  const long failed = call_and_drain(p, SYS_madvise, arguments);
  if (failed == 0) return;
  // Locked between our look and now, or guarded: whatever is still there stays the sandbox's own.
  result_.notes.push_back(pid_object(p.pid) + ": a range could not be given back (" +
                          std::strerror(static_cast<int>(-failed)) + ")");
  keep_resident(p, {&r, 1});
}

MoveOut EvictOp::move_out_of(Process& p) {
  return {*p.injector, p.pid, p.uffd, file_.uffds()[p.index].fd,
          [&](long number, auto arguments) { return call_and_drain(p, number, arguments); }};
}

void EvictOp::move_out(Process& p, std::span<const AddressRange> ranges) {
  const auto stay = move_out_of(p).move(ranges, p.vmas);
  keep_resident(p, stay);
  uint64_t pages = 0;
  for (const AddressRange& r : stay) pages += (r.end - r.begin) / kPageBytes;
  result_.notes.push_back(pid_object(p.pid) + ": " + std::to_string(pages) + " pages that " + p.may_pin +
                          " may hold on to stay resident");
}

// What is still there of ranges that were to go is the sandbox's own.
void EvictOp::keep_resident(Process& p, std::span<const AddressRange> ranges) {
  std::vector<PageSpan> there;
  for (const AddressRange& r : ranges) Pagemap(p.pid).present_pages(r.begin, r.end, there);
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

// A process that is held up in the middle (a freezer, a processor limit) keeps what it still has.
void EvictOp::evict(Process& p) {
  const auto ranges = runs_to_discard(p);
  try {
    if (p.may_pin.empty())
      discard(p, ranges);
    else
      move_out(p, ranges);
  } catch (const Error& e) {
    if (e.code != Code::busy) throw;
    keep_resident(p, ranges);
    result_.notes.push_back(pid_object(p.pid) + ": some of its pages stay: " + e.what());
  }
  fault_point("evict.discarded");
  set_states(p, PageState::evicted);
  p.injector->finish();
  fault_point("evict.evicted");
}

}  // namespace medes
