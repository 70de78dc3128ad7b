#include "memory/capture.h"

#include <sys/mman.h>

#include <algorithm>

#include "common/error.h"
#include "memory/pagemap.h"
#include "memory/proc.h"
#include "memory/program_data.h"

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

// Parts of `span` outside all of `keep` (ascending or not, few).
void subtract(const PageSpan& span, std::span<const AddressRange> keep, std::vector<PageSpan>& out) {
  uint64_t at = span.address;
  const uint64_t end = span.address + span.count * kPageBytes;
  while (at < end) {
    uint64_t stop = end, resume = end;
    for (const auto& k : keep) {
      if (k.end <= at || k.begin >= stop) continue;
      stop = std::max(at, k.begin);
      resume = std::min(end, k.end);
    }
    if (stop > at) out.push_back({at, (stop - at) / kPageBytes});
    at = stop == end ? end : resume;
  }
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

// What can go of one process: written pages outside `keep`, ascending. Those of file mappings are also put
// into `runs`.
std::vector<PageSpan> wanted_pages(pid_t pid, std::span<const Vma> vmas, std::span<const AddressRange> keep,
                                   std::vector<FileRun>& runs) {
  const Pagemap pagemap(pid);
  const auto is_data = find_program_data(pid, vmas);
  std::vector<PageSpan> out, found;
  for (size_t i = 0; i < vmas.size(); ++i) {
    const Vma& v = vmas[i];
    if (!can_go(v) && !is_data[i]) continue;
    found.clear();
    pagemap.private_pages(v.begin, v.end, found);
    if (can_go(v)) {
      for (const auto& span : found) subtract(span, keep, out);
      continue;
    }
    std::vector<PageSpan> written;
    for (const auto& span : found) subtract(span, keep, written);
    for (const auto& w : written)
      runs.push_back({w.address, w.address + w.count * kPageBytes, v.offset + (w.address - v.begin), v.inode,
                      v.device, v.prot});
  }
  bound_runs(runs, vmas.size());
  for (const auto& r : runs) out.push_back({r.begin, (r.end - r.begin) / kPageBytes});
  std::sort(out.begin(), out.end(),
            [](const PageSpan& a, const PageSpan& b) { return a.address < b.address; });
  return out;
}

}  // namespace

std::shared_ptr<MemoryImage> attach(std::span<const pid_t> pids) {
  if (pids.empty()) throw Error(Code::invalid_argument, "no process given");
  if (pids.size() > kMaxProcesses) throw Error(Code::limit_exceeded, "too many processes in one sandbox");
  ImageLayout layout;
  std::vector<std::vector<FileRun>> file_runs(pids.size());
  for (uint32_t i = 0; i < pids.size(); ++i) {
    check_tracer(pids[i]);
    ProcessLayout process;
    process.pid = pids[i];
    process.start_time_ticks = process_start_time(pids[i]);
    process.vmas = read_maps(pids[i]);
    std::vector<std::string> notes;
    const auto keep = pinned_ranges(pids[i], process.vmas, notes);
    const auto wanted = wanted_pages(pids[i], process.vmas, keep, file_runs[i]);
    layout.page_count = enter_runs(i, wanted, layout.page_count, layout.runs);
    process.vmas = with_anonymous_runs(process.vmas, file_runs[i]);
    layout.processes.push_back(std::move(process));
  }
  layout.space = space_of(layout.processes);
  auto image = MemoryImage::live(std::move(layout));
  image->set_file_runs(std::move(file_runs));
  return image;
}

std::shared_ptr<MemoryImage> capture(std::span<const pid_t> pids) { return attach(pids)->copy(); }

}  // namespace medes
