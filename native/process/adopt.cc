#include "process/adopt.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "common/error.h"
#include "process/injected_discard.h"
#include "procfs/pagemap.h"
#include "procfs/proc.h"
#include "serving/keeper.h"
#include "tracing/frozen.h"

namespace medes {
namespace {

constexpr std::chrono::seconds kInjectedCallTimeout{5};
constexpr std::chrono::milliseconds kFrozenLook{20};

}  // namespace

AdoptOp::AdoptOp(SandboxFile& file) : file_(file) {}

void AdoptOp::run() {
  bool any = false;
  const auto records = file_.uffds();
  if (file_.may_be_stopped()) require_all_thawed();
  for (uint32_t i = 0; i < records.size(); ++i) any |= adopt_process(i);
  file_.continue_stopped();
  for (const auto& path : file_.child_paths()) adopt_child(path);
  if (!any && children_.empty())
    throw Error(Code::process_gone, "no process of the sandbox is left", file_.path());
  for (const auto& m : memories_) result_.evicted_pages += m->missing();
  result_.processes = memories_.size();
  result_.resident_pages = file_.layout().page_count - result_.evicted_pages;
}

// A thread may be inside an injected call that is made only when a freezer of cgroup v1 lets go of it. Who
// was to be stopped until that has ended must not be continued before.
void AdoptOp::require_all_thawed() {
  for (const auto& record : std::span(file_.uffds()))
    if (record.pid > 0) require_thawed(record.pid);
}

bool AdoptOp::adopt_process(uint32_t index) {
  const UffdRecord& record = file_.uffds()[index];
  const ProcessLayout& layout = file_.layout().processes[index];
  try {
    const ProcessStat stat = read_stat(layout.pid);
    if (stat.start_time_ticks != layout.start_time_ticks || !is_alive(layout.pid)) return false;
    held_ |= stat.state == 'T' && record.stop == kNotStopped;
    // The eviction never began for a process without a descriptor, and none of its pages are out.
    Uffd uffd;
    if (record.fd >= 0 && !take_uffd(index, uffd)) return true;
    auto memory = std::make_shared<ProcessMemory>(layout.pid, index, file_.layout(), std::move(uffd),
                                                  file_.page_states());
    memory->keep_record(file_.changes()[index], file_.uffds()[index].stop, file_.path());
    memory->recover(children_);
    if (record.fd >= 0) finish_injected_call(record, *memory);
    reconcile(*memory);
    memory->count_missing();
    memory->wake_everywhere();
    memories_.push_back(std::move(memory));
    return true;
  } catch (const Error& e) {
    if (e.code == Code::process_gone) return false;
    throw;
  }
}

// False when the process has become another program by exec: its old memory is gone and wanted by nobody.
bool AdoptOp::take_uffd(uint32_t index, Uffd& uffd) {
  UffdRecord& record = file_.uffds()[index];
  int32_t& kept_fd = file_.changes()[index].kept_fd;
  const ProcessLayout& layout = file_.layout().processes[index];
  const Holder before = keeper::holder_of(record.keeper, kept_fd);
  const auto is_ours = [&] { return record.inode == 0 || uffd.inode() == record.inode; };
  try {
    uffd = Uffd::of_process(layout.pid, record.fd);
  } catch (const Error& e) {
    if (e.code != Code::not_found) throw;
  }
  // The program has closed its own, and may have put another in its place; the keeper of the agent before us
  // has a copy, too, for as long as the memory is there.
  if ((!uffd || !is_ours()) && record.inode != 0) uffd = Uffd(keeper::take(before, record.inode));
  if (uffd && is_ours() && !uffd.memory_gone()) {
    const Holder here = keeper::holder_of(uffd.fd());
    kept_fd = here.fd;
    record.keeper = here.pid;
    if (before.pid != 0 && (before.pid != here.pid || before.fd != here.fd))
      keeper::release(before, record.inode);
    return true;
  }
  uffd.close();
  const auto stack_end = [](std::span<const Vma> vmas) {
    for (const auto& v : vmas)
      if (v.kind == VmaKind::stack) return v.end;
    return uint64_t{0};
  };
  if (stack_end(read_maps(layout.pid)) != stack_end(layout.vmas)) {
    const auto states = file_.page_states();
    for (const auto& run : file_.layout().runs)
      for (uint64_t i = 0; run.process == index && i < run.count; ++i)
        states[run.first_page + i] = static_cast<uint8_t>(PageState::resident);
    return false;
  }
  throw Error(Code::lost,
              "the program closed its userfaultfd while pages were out, and agent and keeper were killed",
              "pid " + std::to_string(layout.pid), "start a new instance");
}

// Children that a record named are taken already. Those whose userfaultfd is not to be found are gone with
// their memory, or in danger: then keeper and agent were killed together, and zeros may have been read.
void AdoptOp::adopt_child(const std::string& path) {
  const auto file = ChildFile::open(path);
  for (const auto& child : children_)
    if (child->inode() == file->inode()) return;
  UniqueFd fd;
  bool kept = false;
  for (const Holder& holder : file->holders()) {
    if (holder.pid == 0) continue;
    kept |= keeper::alive(holder);
    if (file->done()) keeper::release(holder, file->inode());
    if (!fd) fd = keeper::take(holder, file->inode());
  }
  if (file->done() || (!fd && (kept || !strangers()))) return file->unlink();
  if (!fd)
    throw Error(Code::lost, "a child was forked, and the agent and its keeper were killed", path,
                "start a new instance");
  auto child = ProcessMemory::of_child(file_.layout(), file, Uffd(std::move(fd)), file_.path());
  child->replay_log(children_);
  child->wake_all();
  children_.push_back(std::move(child));
}

// Processes of the sandbox that the image knows nothing of.
bool AdoptOp::strangers() const {
  std::vector<pid_t> known;
  for (const auto& p : file_.layout().processes) known.push_back(p.pid);
  for (const pid_t pid : process_tree(known))
    if (std::find(known.begin(), known.end(), pid) == known.end()) return true;
  return false;
}

// An agent killed in the middle of an eviction may have left one thread inside the call that gives pages
// back. Its event must not be taken for the program's own wish to forget those pages.
void AdoptOp::finish_injected_call(const UffdRecord& record, ProcessMemory& memory) {
  const auto begin = std::chrono::steady_clock::now();
  const auto deadline = begin + kInjectedCallTimeout;
  auto look = begin + kFrozenLook;
  InjectedDiscard discard(record.pid, record.frame_address);
  for (;;) {
    const auto ranges = discard.left();
    if (!ranges) return;
    if (!ranges->empty()) {
      DrainedEvents events = memory.drain(*ranges);
      // Nobody serves yet: those who wait fault once more later.
      for (uint64_t address : events.faults) memory.wake(address);
      for (auto& child : events.children) children_.push_back(std::move(child));
    }
    const auto now = std::chrono::steady_clock::now();
    if (now > look) {
      require_thawed(record.pid);
      look = now + kFrozenLook;
    }
    if (now > deadline)
      throw Error(Code::io, "an interrupted eviction does not end", "pid " + std::to_string(record.pid));
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

// The kernel knows what is there; the states know what was meant to go. Where a page was moved away from,
// other memory may lie by now, and be there: so it must be known of each page where it is.
void AdoptOp::reconcile(ProcessMemory& memory) {
  const auto states = file_.page_states();
  const Pagemap pagemap(memory.pid());
  std::vector<PageSpan> present;
  memory.look_undisturbed(children_, [&] {
    present.clear();
    for (const auto& v : read_maps(memory.pid()))
      if (v.kind != VmaKind::other) pagemap.present_pages(v.begin, v.end, present);
  });
  const auto is_there = [&](uint64_t address) {
    const auto span = std::upper_bound(present.begin(), present.end(), address,
                                       [](uint64_t a, const PageSpan& s) { return a < s.address; });
    return span != present.begin() && address - span[-1].address < span[-1].count * kPageBytes;
  };
  for (uint64_t page = memory.first_page(); page < memory.end_page(); ++page) {
    auto& state = states[page];
    const auto was = static_cast<PageState>(state.load());
    if (was != PageState::evicting && was != PageState::evicted) continue;
    const uint64_t address = memory.address_of(page);
    if (is_there(address))
      state = static_cast<uint8_t>(was == PageState::evicting ? PageState::resident : PageState::restored);
    else
      state = static_cast<uint8_t>(PageState::evicted);
  }
}

}  // namespace medes
