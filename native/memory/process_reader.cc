#include "memory/process_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/error.h"

namespace medes {
namespace {

constexpr size_t kIovecs = 1024;  // IOV_MAX

Error read_error(int err, pid_t pid) {
  const std::string object = "pid " + std::to_string(pid);
  if (err == ESRCH) return Error(Code::process_gone, "the process has exited", object);
  return errno_error(err, "cannot read its memory", object,
                     "the agent needs CAP_SYS_PTRACE over the sandbox");
}

void advance(iovec& run, size_t bytes) {
  run.iov_base = static_cast<std::byte*>(run.iov_base) + bytes;
  run.iov_len -= bytes;
}

}  // namespace

void ProcessReader::add(const PageRun& run, uint64_t first, uint64_t count) {
  if (run.process != process_) flush();
  process_ = run.process;
  const uint64_t address = run.address + (first - run.first_page) * kPageBytes;
  if (!runs_.empty()) {
    iovec& last = runs_.back();
    if (reinterpret_cast<uint64_t>(last.iov_base) + last.iov_len == address) {
      last.iov_len += count * kPageBytes;
      return;
    }
  }
  runs_.push_back({reinterpret_cast<void*>(address), count * kPageBytes});
}

void ProcessReader::zero_page(size_t& i) {
  std::memset(out_, 0, kPageBytes);
  out_ += kPageBytes;
  advance(runs_[i], kPageBytes);
  if (runs_[i].iov_len == 0) ++i;
}

void ProcessReader::flush() {
  const pid_t pid = runs_.empty() ? 0 : layout_.processes[process_].pid;
  for (size_t i = 0; i < runs_.size();) {
    const size_t n = std::min(runs_.size() - i, kIovecs);
    size_t bytes = 0;
    for (size_t j = i; j < i + n; ++j) bytes += runs_[j].iov_len;
    const iovec local{out_, bytes};
    const ssize_t got = process_vm_readv(pid, &local, 1, runs_.data() + i, n, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno != EFAULT) throw read_error(errno, pid);
    // The kernel stops at the first page it cannot read.
    size_t whole = got < 0 ? 0 : static_cast<size_t>(got) / kPageBytes * kPageBytes;
    const bool stopped = whole < bytes;
    out_ += whole;
    while (whole > 0) {
      const size_t part = std::min(whole, runs_[i].iov_len);
      advance(runs_[i], part);
      whole -= part;
      if (runs_[i].iov_len == 0) ++i;
    }
    if (stopped) zero_page(i);
  }
  runs_.clear();
}

}  // namespace medes
