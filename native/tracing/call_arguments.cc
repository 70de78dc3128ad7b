#include "tracing/call_arguments.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <memory>
#include <span>

#include "tracing/system_calls.h"

namespace medes {
namespace {

constexpr uint64_t kPageMask = kPageBytes - 1;
constexpr int kMaxRobustEntries = 64;

// What lies behind the pointers among a call's arguments, beyond the page that each points at. Sizes come
// from the program, so all of it is bounded: what is beyond the bounds may wake the sandbox, and nothing
// worse.
class Behind {
 public:
  Behind(const user_regs_struct& registers, const ReadMemory& read, std::vector<AddressRange>& out)
      : read_memory_(read), r_(registers), out_(out) {}

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
    if (begin < kPageBytes || bytes == 0 || bytes > UINT64_MAX - begin) return;
    bytes = std::min(bytes, kMaxBytes - used_);
    if (bytes == 0 || ranges_ == kMaxRanges) return;
    out_.push_back(pages_around(begin, 0, bytes));
    used_ += bytes, ++ranges_;
  }
  void array(uint64_t begin, uint64_t count, uint64_t each) {
    range(begin, std::min<uint64_t>(count, kMaxBytes) * each);
  }
  template <typename T>
  bool read(uint64_t address, T& value) const {
    return address >= kPageBytes && read_memory_(address, &value, sizeof value);
  }
  // Of each buffer its beginning: the rest is touched when the call ends, and the sandbox wakes then anyway.
  void vector(uint64_t address, uint64_t count) {
    count = std::min<uint64_t>(count, kMaxRanges);
    array(address, count, sizeof(iovec));
    const auto entries = std::make_unique_for_overwrite<iovec[]>(count);
    if (count == 0 || !read_memory_(address, entries.get(), count * sizeof(iovec))) return;
    for (const auto& e : std::span(entries.get(), count))
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

  const ReadMemory& read_memory_;
  const user_regs_struct& r_;
  std::vector<AddressRange>& out_;
  uint64_t used_ = 0;
  size_t ranges_ = 0;
};

}  // namespace

AddressRange pages_around(uint64_t at, uint64_t before, uint64_t after) {
  constexpr uint64_t kLast = ~kPageMask;  // of the last page, which is no program's
  const uint64_t begin = std::min(at - std::min(at, before), kLast) & ~kPageMask;
  const uint64_t end = after >= kLast || at >= kLast - after ? kLast : at + after;
  return {begin, (end + kPageMask) & ~kPageMask};
}

void add_robust_list(uint64_t head, const ReadMemory& read, std::vector<AddressRange>& out) {
  out.push_back(pages_around(head, 0, 24));
  uint64_t entry = 0;
  if (!read(head, &entry, sizeof entry)) return;
  for (int i = 0; i < kMaxRobustEntries && (entry & ~1ull) != head && entry != 0; ++i) {
    const uint64_t at = entry & ~1ull;
    out.push_back(pages_around(at, 64, 64));  // the mutex around its list entry
    if (!read(at, &entry, sizeof entry)) return;
  }
}

void add_call_ranges(const user_regs_struct& registers, const ReadMemory& read,
                     std::vector<AddressRange>& out) {
  for (int i = 0; i < 6; ++i)
    if (const uint64_t at = argument(registers, i); at >= kPageBytes && at <= UINT64_MAX - kPageBytes)
      out.push_back(pages_around(at, 0, 16));  // a time, the longest that none of the rest tells
  Behind(registers, read, out).add();
}

std::optional<std::array<int64_t, 2>> time_left(const std::array<int64_t, 2>& given, int64_t units_per_s,
                                                int64_t waited_ns) {
  constexpr int64_t kNs = 1'000'000'000, kMostSeconds = INT64_MAX / kNs - 1;
  if (given[0] < 0 || given[1] < 0 || given[1] >= units_per_s) return std::nullopt;
  const int64_t unit_ns = kNs / units_per_s;
  const int64_t all = std::min(given[0], kMostSeconds) * kNs + given[1] * unit_ns;
  const int64_t left = all - std::clamp<int64_t>(waited_ns, 0, all);
  return std::array<int64_t, 2>{left / kNs, left % kNs / unit_ns};
}

}  // namespace medes
