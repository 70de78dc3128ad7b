#include "process/injected_discard.h"

#include <limits.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <string>

#include "common/error.h"
#include "procfs/proc.h"
#include "tracing/process_bytes.h"

namespace medes {
namespace {

std::string task_file(pid_t pid, pid_t tid, const char* name) {
  const std::string path = "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/" + name;
  return read_proc_file(path, pid, 4096);
}

// Of what a call has to give back, by its arguments: one range, or several in the sandbox's memory.
std::vector<AddressRange> ranges_of(pid_t pid, const SleepingCall& call) {
  const auto& a = call.arguments;
  if (call.number == SYS_madvise && a[2] == MADV_DONTNEED) return {{a[0], a[0] + a[1]}};
  if (call.number != SYS_process_madvise || a[3] != MADV_DONTNEED || a[2] > IOV_MAX) return {};
  std::vector<iovec> vector(a[2]);
  if (!read_memory(pid, a[1], vector.data(), vector.size() * sizeof(iovec))) return {};
  std::vector<AddressRange> out;
  for (const auto& v : vector) {
    const auto begin = reinterpret_cast<uint64_t>(v.iov_base);
    out.push_back({begin, begin + v.iov_len});
  }
  return out;
}

}  // namespace

std::optional<std::vector<AddressRange>> InjectedDiscard::left() {
  bool unknown = false;
  for (pid_t tid : threads_of(pid_)) {
    try {
      // One that the death of the agent stopped (Injector::call_alone) has left the call.
      if (const char state = read_stat(tid).state; state == 'T' || state == 't') continue;
      const std::string text = task_file(pid_, tid, "syscall");
      if (const auto call = parse_syscall(text)) {
        user_ticks_.erase(tid);
        if (call->stack_pointer != frame_address_) continue;
        if (auto ranges = ranges_of(pid_, *call); !ranges.empty()) return ranges;
      } else if (text.starts_with("running")) {
        unknown |= may_be_inside(tid);
      }
    } catch (const Error& e) {
      if (e.code != Code::process_gone) throw;  // else this thread has ended
    }
  }
  if (unknown) return std::vector<AddressRange>{};
  return std::nullopt;
}

// Between two of its events the call runs, and the kernel does not say where a running thread is. One that
// has spent time in user mode since it was first seen is in no call of ours.
bool InjectedDiscard::may_be_inside(pid_t tid) {
  const std::string object = "thread " + std::to_string(tid);
  const uint64_t user = parse_stat(task_file(pid_, tid, "stat"), object).user_ticks;
  const auto [seen, fresh] = user_ticks_.try_emplace(tid, user);
  return fresh || seen->second == user;
}

}  // namespace medes
