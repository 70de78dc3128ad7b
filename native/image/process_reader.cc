#include "image/process_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/error.h"
#include "image/foreign_memory.h"

namespace medes {
namespace {

Error read_error(int err, pid_t pid) {
  const std::string object = "pid " + std::to_string(pid);
  if (err == ESRCH) return Error(Code::process_gone, "the process has exited", object);
  return errno_error(err, "cannot read its memory", object,
                     "the agent needs CAP_SYS_PTRACE over the sandbox");
}

}  // namespace

OpenMemories::OpenMemories(std::span<const ProcessLayout> processes)
    : opened_(std::min(processes.size(), kMost)) {
  for (size_t i = 0; i < opened_.size(); ++i) opened_[i].pid = processes[i].pid;
}

const ForeignMemory* OpenMemories::of(uint32_t process) {
  if (process >= opened_.size()) return nullptr;
  Opened& kept = opened_[process];
  std::call_once(kept.once, [&] { kept.memory.emplace(kept.pid); });
  return kept.memory->is_open() ? &*kept.memory : nullptr;
}

void ProcessReader::add(const PageRun& run, uint64_t first, uint64_t count) {
  if (run.process != process_) flush();
  process_ = run.process;
  const uint64_t address = run.address + (first - run.first_page) * kPageBytes;
  const uint64_t end = address + count * kPageBytes;
  if (!runs_.empty() && runs_.back().end == address)
    runs_.back().end = end;
  else
    runs_.push_back({address, end});
}

void ProcessReader::flush() {
  if (runs_.empty()) return;
  const pid_t pid = layout_.processes[process_].pid;
  std::optional<ForeignMemory> opened;
  const ForeignMemory* kept = memories_.of(process_);
  const ForeignMemory& memory = kept != nullptr ? *kept : opened.emplace(pid);
  for (const auto& run : runs_) {
    for (uint64_t at = run.begin; at < run.end;) {
      const ssize_t got = memory.read(at, out_, run.end - at);
      if (got < 0) throw read_error(errno, pid);
      const uint64_t whole = static_cast<uint64_t>(got) / kPageBytes * kPageBytes;
      at += whole, out_ += whole;
      if (at == run.end) break;
      std::memset(out_, 0, kPageBytes);  // of the first page that is not there, or not readable
      at += kPageBytes, out_ += kPageBytes;
    }
  }
  runs_.clear();
}

}  // namespace medes
