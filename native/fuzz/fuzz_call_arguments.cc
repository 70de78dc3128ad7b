// Any registers and memory of a thread that sleeps in a call: the ranges that its arguments point at are
// whole pages and bounded in number, and what is left of a timeout is a time.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tracing/call_arguments.h"
#include "tracing/system_calls.h"

using namespace medes;

namespace {

constexpr long kCalls[] = {SYS_poll,          SYS_ppoll,      SYS_restart_syscall, SYS_select,
                           SYS_pselect6,      SYS_epoll_wait, SYS_readv,           SYS_writev,
                           SYS_recvmsg,       SYS_sendmsg,    SYS_recvmmsg,        SYS_sendmmsg,
                           kSysFutexWaitv,    SYS_semop,      SYS_io_uring_enter,  SYS_io_getevents,
                           SYS_io_pgetevents, SYS_read,       kSysEpollPwait2};
constexpr size_t kMemoryAt = 0x10000;

void check(const std::vector<AddressRange>& ranges) {
  if (ranges.size() > 2000) __builtin_trap();
  uint64_t pages = 0;
  for (const AddressRange& r : ranges) {
    if (r.begin > r.end || r.begin % kPageBytes != 0 || r.end % kPageBytes != 0) __builtin_trap();
    pages += (r.end - r.begin) / kPageBytes;
  }
  if (pages > 4096) __builtin_trap();
}

}  // namespace

// The input: a byte for the call, six arguments of two bytes (small numbers, or addresses of memory, or,
// where the next byte says so, the far end of it), and memory that lies at kMemoryAt and repeats.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHead = 14;
  if (size < kHead + 16) return 0;
  user_regs_struct registers{};
  registers.orig_rax = static_cast<unsigned long long>(kCalls[data[0] % std::size(kCalls)]);
  for (int i = 0; i < 6; ++i) {
    const uint64_t value = data[2 + 2 * i] | uint64_t{data[3 + 2 * i]} << 8;
    set_argument(registers, i,
                 data[1] >> i & 1  ? ~value
                 : value >= 0x8000 ? kMemoryAt + value % 0x800
                                   : value);
  }
  const uint8_t* const memory = data + kHead;
  const size_t bytes = size - kHead;
  const ReadMemory read = [&](uint64_t address, void* out, size_t n) {
    if (address < kMemoryAt || address - kMemoryAt > 0x800 || n > 0x800) return false;
    for (size_t i = 0; i < n;) {
      const size_t at = (address - kMemoryAt + i) % bytes, part = std::min(n - i, bytes - at);
      std::memcpy(static_cast<uint8_t*>(out) + i, memory + at, part);
      i += part;
    }
    return true;
  };
  std::vector<AddressRange> ranges;
  add_call_ranges(registers, read, ranges);
  uint64_t word = 0;
  std::memcpy(&word, memory, sizeof word);
  add_robust_list(word, read, ranges);
  add_robust_list(kMemoryAt + 8, read, ranges);
  ranges.push_back(pages_around(word, 256, 0x900));
  check(ranges);

  std::array<int64_t, 2> given{};
  std::memcpy(given.data(), memory, sizeof given);
  for (const int64_t units : {1'000'000, 1'000'000'000})
    if (const auto left = time_left(given, units, given[1] ^ static_cast<int64_t>(data[1])))
      if ((*left)[0] < 0 || (*left)[0] > given[0] || (*left)[1] < 0 || (*left)[1] >= units) __builtin_trap();
  return 0;
}
