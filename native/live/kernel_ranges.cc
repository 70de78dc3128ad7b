#include "live/kernel_ranges.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "live/process_bytes.h"
#include "live/ptrace_calls.h"
#include "live/system_calls.h"

namespace medes {
namespace {

constexpr uint64_t kPageMask = kPageBytes - 1;
constexpr int kMaxRobustEntries = 64;
// glibc keeps the robust list head inside the thread control block, and clear_child_tid 16 bytes before it.
constexpr uint64_t kThreadBlockBytes = 0x900;

AddressRange pages_of(uint64_t begin, uint64_t end) {
  return {begin & ~kPageMask, (end + kPageMask) & ~kPageMask};
}

void add_robust_list(const Tracee& t, std::vector<AddressRange>& out) {
  uint64_t head = 0;
  size_t head_bytes = 0;
  if (syscall(SYS_get_robust_list, t.tid, &head, &head_bytes) != 0 || head == 0) return;
  out.push_back(pages_of(head, head + 24));
  uint64_t entry = 0;
  if (!read_memory(t.pid, head, &entry, sizeof entry)) return;
  for (int i = 0; i < kMaxRobustEntries && (entry & ~1ull) != head && entry != 0; ++i) {
    const uint64_t at = entry & ~1ull;
    out.push_back(pages_of(at - 64, at + 64));  // the mutex around its list entry
    if (!read_memory(t.pid, at, &entry, sizeof entry)) return;
  }
}

// What lies behind the pointers among a call's arguments, beyond the page that each points at. Sizes come
// from the program, so all of it is bounded: what is beyond the bounds may wake the sandbox, and nothing
// worse.
class Behind {
 public:
  Behind(const Tracee& thread, const user_regs_struct& registers, std::vector<AddressRange>& out)
      : pid_(thread.pid), r_(registers), out_(out) {}

  void add() {
    switch (static_cast<long>(r_.orig_rax)) {
      case SYS_poll:
      case SYS_ppoll: return array(a(0), a(1), 8);
      // A poll that an earlier stop interrupted: its arguments are still there, its number is not. Of the
      // other calls that go on like this none has a small number there and more than a few bytes behind the
      // first.
      case SYS_restart_syscall: return a(1) < kMaxPolled ? array(a(0), a(1), 8) : void();
      case SYS_select: return sets(false);
      case SYS_pselect6: return sets(true);
      case SYS_epoll_wait:
      case SYS_epoll_pwait:
      case kSysEpollPwait2: return array(a(1), a(2), 12);
      case SYS_readv:
      case SYS_writev:
      case SYS_preadv:
      case SYS_pwritev:
      case SYS_preadv2:
      case SYS_pwritev2:
      case SYS_vmsplice: return vector(a(1), a(2));
      case SYS_recvmsg:
      case SYS_sendmsg: return message(a(1));
      case SYS_recvmmsg:
      case SYS_sendmmsg: return messages(a(1), a(2));
      case kSysFutexWaitv: return words(a(0), a(1));
      case SYS_semop:
      case SYS_semtimedop: return array(a(1), a(2), 6);
      case SYS_io_uring_enter: return ring_argument(a(4), a(3));
      case SYS_io_getevents: return array(a(3), a(2), 32);
      case SYS_io_pgetevents: array(a(3), a(2), 32); return pointer_at(a(5));
      default: return;
    }
  }

 private:
  static constexpr uint64_t kMaxBytes = 1u << 20;
  static constexpr uint64_t kMaxPolled = 1u << 20;
  static constexpr size_t kMaxRanges = 1024, kMaxMessages = 64;

  uint64_t a(int index) const { return argument(r_, index); }

  void range(uint64_t begin, uint64_t bytes) {
    if (begin < kPageBytes || begin + bytes < begin || bytes == 0) return;
    bytes = std::min(bytes, kMaxBytes - used_);
    if (bytes == 0 || ranges_ == kMaxRanges) return;
    out_.push_back(pages_of(begin, begin + bytes));
    used_ += bytes, ++ranges_;
  }
  void array(uint64_t begin, uint64_t count, uint64_t each) {
    range(begin, std::min<uint64_t>(count, kMaxBytes) * each);
  }
  template <typename T>
  bool read(uint64_t address, T& value) const {
    return address >= kPageBytes && read_memory(pid_, address, &value, sizeof value);
  }
  // Of each buffer its beginning: the rest is touched when the call ends, and the sandbox wakes then anyway.
  void vector(uint64_t address, uint64_t count) {
    count = std::min<uint64_t>(count, kMaxRanges);
    array(address, count, sizeof(iovec));
    std::vector<iovec> entries(count);
    if (count == 0 || !read_memory(pid_, address, entries.data(), count * sizeof(iovec))) return;
    for (const auto& e : entries)
      if (e.iov_len > 0) range(reinterpret_cast<uint64_t>(e.iov_base), 1);
  }
  void message(uint64_t address) {
    msghdr m{};
    range(address, sizeof m);
    if (!read(address, m)) return;
    if (m.msg_name != nullptr) range(reinterpret_cast<uint64_t>(m.msg_name), m.msg_namelen);
    if (m.msg_control != nullptr) range(reinterpret_cast<uint64_t>(m.msg_control), m.msg_controllen);
    vector(reinterpret_cast<uint64_t>(m.msg_iov), m.msg_iovlen);
  }
  void messages(uint64_t address, uint64_t count) {
    array(address, count, sizeof(mmsghdr));
    for (uint64_t i = 0; i < std::min<uint64_t>(count, kMaxMessages); ++i)
      message(address + i * sizeof(mmsghdr));
  }
  void sets(bool with_mask) {
    const uint64_t bytes = (std::min<uint64_t>(a(0), kMaxBytes) + 63) / 64 * 8;
    for (int i = 1; i <= 3; ++i) range(a(i), bytes);
    if (with_mask) pointer_at(a(5));
  }
  // A structure that begins with a pointer, to a signal set.
  void pointer_at(uint64_t address) {
    uint64_t inner = 0;
    if (read(address, inner)) range(inner, 8);
  }
  void words(uint64_t address, uint64_t count) {
    struct Word {
      uint64_t value, address;
      uint32_t flags, reserved;
    };
    count = std::min<uint64_t>(count, 128);
    array(address, count, sizeof(Word));
    for (uint64_t i = 0; i < count; ++i)
      if (Word w{}; read(address + i * sizeof w, w)) range(w.address, 8);
  }
  void ring_argument(uint64_t address, uint64_t flags) {
    constexpr uint64_t kExtArg = 1 << 3;
    struct {
      uint64_t mask;
      uint32_t mask_bytes, wait_us;
      uint64_t time;
    } argument{};
    if ((flags & kExtArg) == 0 || !read(address, argument)) return;
    range(address, sizeof argument);
    range(argument.mask, 8);
    range(argument.time, 16);
  }

  const pid_t pid_;
  const user_regs_struct& r_;
  std::vector<AddressRange>& out_;
  uint64_t used_ = 0;
  size_t ranges_ = 0;
};

}  // namespace

void add_kernel_ranges(const Tracee& t, std::vector<AddressRange>& out) {
  const user_regs_struct r = registers_of(t);
  out.push_back(pages_of(r.rsp - kPageBytes, r.rsp + kPageBytes));
  if (r.fs_base != 0) out.push_back(pages_of(r.fs_base - 256, r.fs_base + kThreadBlockBytes));
  trace::RseqConfig config{};
  if (trace::request(trace::kGetRseq, t.tid, sizeof config, reinterpret_cast<uint64_t>(&config)) >= 0 &&
      config.pointer != 0)
    out.push_back(pages_of(config.pointer, config.pointer + std::max<uint32_t>(config.size, 32)));
  add_robust_list(t, out);
  if (static_cast<long>(r.orig_rax) < 0 || r.cs != kUserCode64) return;
  // It sleeps in a system call that begins anew when the thread is let go: what its arguments point at (a
  // futex word, an array of poll descriptors) is read then, and would wake the sandbox at once.
  for (int i = 0; i < 6; ++i)
    if (const uint64_t at = argument(r, i); at >= kPageBytes && at <= UINT64_MAX - kPageBytes)
      out.push_back(pages_of(at, at + 16));  // a time, the longest that none of the rest tells
  Behind(t, r, out).add();
}

}  // namespace medes
