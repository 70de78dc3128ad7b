#include "procfs/capture.h"

#include <sys/mman.h>

#include <algorithm>

#include "common/error.h"
#include "procfs/fork_shared.h"
#include "procfs/pagemap.h"
#include "procfs/proc.h"
#include "procfs/program_data.h"

namespace medes {
namespace {

std::string pid_object(pid_t pid) { return "pid " + std::to_string(pid); }

void check_tracer(pid_t pid) {
  const std::string status = read_proc_file("/proc/" + std::to_string(pid) + "/status", pid);
  const uint64_t tracer = field_of(status, "TracerPid");
  if (tracer != 0)
    throw Error(Code::traced, "process " + std::to_string(tracer) + " traces it", pid_object(pid),
                "detach the debugger first");
}

// Memory that cannot be read is left alone.
bool can_go(const Vma& v) { return is_anonymous(v) && (v.prot & PROT_READ) != 0; }

// Enters what process `index` has to give, ascending; returns the page after the last.
uint64_t enter_runs(uint32_t index, std::span<const PageSpan> spans, uint64_t page,
                    std::vector<PageRun>& runs) {
  for (const PageSpan& span : spans) {
    PageRun* const last = runs.empty() ? nullptr : &runs.back();
    if (last != nullptr && last->process == index && last->address + last->count * kPageBytes == span.address)
      last->count += span.count;
    else
      runs.push_back({index, span.address, page, span.count});
    page += span.count;
  }
  return page;
}

// Pages that may go, and in which of the process's mappings they lie.
struct Candidate {
  size_t vma = 0;
  PageSpan span;
};

// Appends the parts of `c` outside `keep` (ascending, disjoint).
void subtract(const Candidate& c, std::span<const AddressRange> keep, std::vector<Candidate>& out) {
  uint64_t at = c.span.address;
  const uint64_t end = at + c.span.count * kPageBytes;
  auto k = std::partition_point(keep.begin(), keep.end(), [&](const AddressRange& r) { return r.end <= at; });
  for (; at < end; ++k) {
    const bool last = k == keep.end() || k->begin >= end;
    const uint64_t stop = last ? end : std::max(at, k->begin);
    if (stop > at) out.push_back({c.vma, {at, (stop - at) / kPageBytes}});
    if (last) return;
    at = std::min(end, k->end);
  }
}

std::vector<Candidate> subtract(std::span<const Candidate> from, std::span<const AddressRange> keep) {
  std::vector<Candidate> out;
  for (const auto& c : from) subtract(c, keep, out);
  return out;
}

// Whole pages, ascending and disjoint.
std::vector<AddressRange> merged(std::vector<AddressRange> ranges) {
  for (auto& r : ranges) {
    r.begin = r.begin / kPageBytes * kPageBytes;
    r.end = (r.end + kPageBytes - 1) / kPageBytes * kPageBytes;
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const AddressRange& a, const AddressRange& b) { return a.begin < b.begin; });
  std::vector<AddressRange> out;
  for (const auto& r : ranges)
    if (!out.empty() && r.begin <= out.back().end)
      out.back().end = std::max(out.back().end, r.end);
    else
      out.push_back(r);
  return out;
}

// The largest runs that leave the process few enough mappings.
void bound_runs(std::vector<FileRun>& runs, size_t vmas) {
  const size_t most = vmas < kMaxVmasAfterSplit ? (kMaxVmasAfterSplit - vmas) / 2 : 0;
  if (runs.size() <= most) return;
  std::stable_sort(runs.begin(), runs.end(),
                   [](const FileRun& a, const FileRun& b) { return a.end - a.begin > b.end - b.begin; });
  runs.resize(most);
  std::sort(runs.begin(), runs.end(), [](const FileRun& a, const FileRun& b) { return a.begin < b.begin; });
}

// What can go of one process: written pages outside `keep`, ascending.
std::vector<Candidate> candidates(pid_t pid, std::span<const Vma> vmas, std::span<const AddressRange> keep) {
  const Pagemap pagemap(pid);
  const auto is_data = find_program_data(pid, vmas);
  std::vector<Candidate> out;
  std::vector<PageSpan> found;
  for (size_t i = 0; i < vmas.size(); ++i) {
    if (!can_go(vmas[i]) && !is_data[i]) continue;
    found.clear();
    pagemap.private_pages(vmas[i].begin, vmas[i].end, found);
    for (const auto& span : found) subtract({i, span}, keep, out);
  }
  return out;
}

std::vector<PageSpan> spans_of(std::span<const Candidate> candidates) {
  std::vector<PageSpan> out;
  for (const auto& c : candidates) out.push_back(c.span);
  return out;
}

// The spans, ascending; those of file mappings, as many as the process can have mappings for, are also put
// into `runs`.
std::vector<PageSpan> wanted_pages(std::span<const Candidate> candidates, std::span<const Vma> vmas,
                                   std::vector<FileRun>& runs) {
  std::vector<PageSpan> out;
  for (const auto& [vma, span] : candidates) {
    const Vma& v = vmas[vma];
    if (can_go(v))
      out.push_back(span);
    else
      runs.push_back({span.address, span.address + span.count * kPageBytes,
                      v.offset + (span.address - v.begin), v.inode, v.device, v.prot});
  }
  bound_runs(runs, vmas.size());
  for (const auto& r : runs) out.push_back({r.begin, (r.end - r.begin) / kPageBytes});
  std::sort(out.begin(), out.end(),
            [](const PageSpan& a, const PageSpan& b) { return a.address < b.address; });
  return out;
}

}  // namespace

std::shared_ptr<MemoryImage> attach(std::span<const pid_t> pids, std::optional<uint32_t> fork_sharers_max) {
  if (pids.empty()) throw Error(Code::invalid_argument, "no process given");
  if (pids.size() > kMaxProcesses) throw Error(Code::limit_exceeded, "too many processes in one sandbox");
  ImageLayout layout;
  std::vector<std::vector<Candidate>> found(pids.size());
  for (uint32_t i = 0; i < pids.size(); ++i) {
    check_tracer(pids[i]);
    ProcessLayout process;
    process.pid = pids[i];
    process.start_time_ticks = process_start_time(pids[i]);
    process.vmas = read_maps(pids[i]);
    if (live_thread(pids[i]) != pids[i])
      throw Error(Code::unsupported, "its main thread has exited while others run on", pid_object(pids[i]));
    std::vector<std::string> notes;
    const auto keep = merged(find_pinned(pids[i], process.vmas, notes).ranges);
    found[i] = candidates(pids[i], process.vmas, keep);
    layout.processes.push_back(std::move(process));
  }
  ForkShared shared;
  if (fork_sharers_max) {
    std::vector<std::vector<PageSpan>> spans;
    for (const auto& f : found) spans.push_back(spans_of(f));
    shared = find_fork_shared(pids, spans, *fork_sharers_max);
    for (size_t i = 0; i < found.size(); ++i)
      if (!shared.stay[i].empty()) found[i] = subtract(found[i], shared.stay[i]);
  }
  std::vector<std::vector<FileRun>> file_runs(pids.size());
  for (uint32_t i = 0; i < pids.size(); ++i) {
    auto& vmas = layout.processes[i].vmas;
    const auto wanted = wanted_pages(found[i], vmas, file_runs[i]);
    layout.page_count = enter_runs(i, wanted, layout.page_count, layout.runs);
    vmas = with_anonymous_runs(vmas, file_runs[i]);
  }
  layout.space = space_of(layout.processes);
  auto image = MemoryImage::live(std::move(layout));
  image->set_file_runs(std::move(file_runs));
  image->set_fork_shared(shared.pages);
  return image;
}

std::shared_ptr<MemoryImage> capture(std::span<const pid_t> pids) { return attach(pids)->copy(); }

}  // namespace medes
