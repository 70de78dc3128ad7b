#include "process/make_anonymous.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>

#include "common/error.h"
#include "common/fault_point.h"
#include "common/wiped.h"
#include "image/foreign_memory.h"
#include "procfs/proc.h"
#include "tracing/process_bytes.h"

namespace medes {
namespace {

// Copies exist twice until they are moved into place: this is how far a sandbox may go over its memory limit,
// unless one run alone is larger.
constexpr uint64_t kBatchBytes = 1u << 20;
constexpr size_t kBatchRuns = 512;
constexpr int kMoveRetries = 100;  // with a pause of 5 ms each
constexpr timespec kMovePause{0, 5'000'000};

std::string pid_object(pid_t pid) { return "pid " + std::to_string(pid); }

uint64_t bytes_of(const FileRun& r) { return r.end - r.begin; }

// Those whose mapping is still the captured one, by protection (a batch has one), then address.
std::vector<FileRun> unchanged(std::span<const FileRun> runs, std::span<const Vma> vmas) {
  std::vector<FileRun> out;
  for (const auto& r : runs) {
    const auto v = std::upper_bound(vmas.begin(), vmas.end(), r.begin,
                                    [](uint64_t a, const Vma& m) { return a < m.end; });
    if (v == vmas.end() || v->begin > r.begin || v->end < r.end || v->kind != VmaKind::file_private) continue;
    if (v->inode == r.inode && v->device == r.device && v->prot == r.prot &&
        v->offset + (r.begin - v->begin) == r.offset)
      out.push_back(r);
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const FileRun& a, const FileRun& b) { return a.prot < b.prot; });
  return out;
}

class Replacement {
 public:
  Replacement(Injector& injector, pid_t pid) : injector_(injector), pid_(pid) {}

  // 0, or the errno of what failed; the runs before it are replaced.
  int replace(std::span<const FileRun> batch) {
    uint64_t bytes = 0;
    for (const auto& r : batch) bytes += bytes_of(r);
    const uint64_t map[] = {
        0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, static_cast<uint64_t>(-1), 0};
    const long copies = injector_.call(SYS_mmap, map);
    if (copies < 0) return static_cast<int>(-copies);
    uint64_t at = static_cast<uint64_t>(copies);
    const uint64_t end = at + bytes;
    fault_point("anonymous.mapped");
    int err = copy(batch, at);
    fault_point("anonymous.copied");
    if (err == 0 && batch[0].prot != (PROT_READ | PROT_WRITE)) {
      const uint64_t protect[] = {at, bytes, batch[0].prot};
      err = static_cast<int>(-injector_.call(SYS_mprotect, protect));
      fault_point("anonymous.protected");
    }
    for (size_t i = 0; err == 0 && i < batch.size(); ++i) {
      err = move(at, batch[i]);
      if (err != 0) break;
      at += bytes_of(batch[i]);
      ++replaced_;
      fault_point("anonymous.moved_one");
    }
    if (at < end) {
      const uint64_t unmap[] = {at, end - at};
      (void)injector_.call(SYS_munmap, unmap);
    }
    return err;
  }
  size_t replaced() const { return replaced_; }

 private:
  int copy(std::span<const FileRun> batch, uint64_t to) {
    uint64_t bytes = 0;
    for (const auto& r : batch) bytes += bytes_of(r);
    buffer_.resize(bytes);
    const ForeignMemory memory(pid_);
    std::byte* out = buffer_.data();
    for (const auto& r : batch) {
      if (memory.read(r.begin, out, bytes_of(r)) != static_cast<ssize_t>(bytes_of(r))) return EFAULT;
      out += bytes_of(r);
    }
    return write_memory(pid_, to, buffer_.data(), bytes) ? 0 : EFAULT;
  }

  // The kernel takes the old mapping away before it moves the new one, and the move may then fail for want of
  // memory for a mapping. The copy still is where it was.
  int move(uint64_t from, const FileRun& run) {
    const uint64_t arguments[] = {from, bytes_of(run), bytes_of(run), MREMAP_MAYMOVE | MREMAP_FIXED,
                                  run.begin};
    for (int tries = 0;; ++tries) {
      const long moved = injector_.call_alone(SYS_mremap, arguments);
      if (moved >= 0) return 0;
      if (still_mapped(run)) return static_cast<int>(-moved);
      if (tries == kMoveRetries) {
        (void)kill(pid_, SIGKILL);  // it would run into the hole
        throw Error(Code::process_gone, "no memory to give its data back to it", pid_object(pid_));
      }
      nanosleep(&kMovePause, nullptr);
    }
  }

  bool still_mapped(const FileRun& run) const {
    for (const auto& v : read_maps(pid_))
      if (v.begin <= run.begin && run.end <= v.end) return true;
    return false;
  }

  Injector& injector_;
  const pid_t pid_;
  WipedBytes buffer_;
  size_t replaced_ = 0;
};

}  // namespace

size_t make_anonymous(Injector& injector, pid_t pid, std::span<const FileRun> runs, std::span<const Vma> vmas,
                      std::vector<std::string>& notes) {
  const std::vector<FileRun> all = unchanged(runs, vmas);
  Replacement replacement(injector, pid);
  for (size_t first = 0; first < all.size();) {
    size_t last = first;
    uint64_t bytes = 0;
    while (last < all.size() && last - first < kBatchRuns && all[last].prot == all[first].prot &&
           (last == first || bytes + bytes_of(all[last]) <= kBatchBytes))
      bytes += bytes_of(all[last++]);
    const int err = replacement.replace(std::span(all).subspan(first, last - first));
    if (err != 0) {
      notes.push_back(pid_object(pid) + ": written library data of " +
                      std::to_string(all.size() - replacement.replaced()) + " ranges stays resident (" +
                      std::strerror(err) + ")");
      break;
    }
    first = last;
  }
  return replacement.replaced();
}

}  // namespace medes
