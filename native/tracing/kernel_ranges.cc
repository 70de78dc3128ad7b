#include "tracing/kernel_ranges.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "tracing/call_arguments.h"
#include "tracing/ptrace_calls.h"
#include "tracing/system_calls.h"

namespace medes {
namespace {

// glibc keeps the robust list head inside the thread control block, and clear_child_tid 16 bytes before it.
constexpr uint64_t kThreadBlockBytes = 0x900;

}  // namespace

void add_kernel_ranges(const Tracee& t, const ForeignMemory& memory, std::vector<AddressRange>& out) {
  const user_regs_struct r = registers_of(t);
  out.push_back(pages_around(r.rsp, kPageBytes, kPageBytes));
  if (r.fs_base != 0) out.push_back(pages_around(r.fs_base, 256, kThreadBlockBytes));
  trace::RseqConfig config{};
  if (trace::request(trace::kGetRseq, t.tid, sizeof config, reinterpret_cast<uint64_t>(&config)) >= 0 &&
      config.pointer != 0)
    out.push_back(pages_around(config.pointer, 0, std::max<uint32_t>(config.size, 32)));
  const ReadMemory read = [&memory](uint64_t address, void* into, size_t bytes) {
    return memory.read(address, into, bytes) == static_cast<ssize_t>(bytes);
  };
  uint64_t head = 0;
  size_t head_bytes = 0;
  if (syscall(SYS_get_robust_list, t.tid, &head, &head_bytes) == 0 && head != 0)
    add_robust_list(head, read, out);
  if (static_cast<long>(r.orig_rax) < 0 || r.cs != kUserCode64) return;
  // It sleeps in a system call that begins anew when the thread is let go: what its arguments point at (a
  // futex word, an array of poll descriptors) is read then, and would wake the sandbox at once.
  add_call_ranges(r, read, out);
}

}  // namespace medes
