// The ptrace requests used here, with errors as exceptions; numbers that older C libraries lack.
#pragma once

#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "common/error.h"

namespace medes::trace {

inline constexpr int kSeize = 0x4206, kInterrupt = 0x4207, kGetSigmask = 0x420a, kSetSigmask = 0x420b,
                     kGetSyscallInfo = 0x420e, kGetRseq = 0x420f, kGetDispatch = 0x4211;
inline constexpr long kOptionSysgood = 1, kOptionSuspendSeccomp = 1 << 21;
inline constexpr int kEventStop = 128;
inline constexpr int kSyscallStopSignal = 5 | 0x80;
inline constexpr int kRegsetGeneral = 1, kRegsetXstate = 0x202;

struct RseqConfig {
  uint64_t pointer;
  uint32_t size, signature, flags, pad;
};
static_assert(sizeof(RseqConfig) == 24);

// Syscall user dispatch (Linux 6.4 tells of it): outside of [offset, offset + length) a call is a SIGSYS
// while the byte at `selector` is not 0.
struct DispatchConfig {
  uint64_t on, selector, offset, length;
};
static_assert(sizeof(DispatchConfig) == 32);

inline long request(int what, pid_t tid, uint64_t address, uint64_t data) {
  return ptrace(static_cast<__ptrace_request>(what), tid, address, data);
}

inline void require(int what, pid_t tid, uint64_t address, uint64_t data, const char* doing) {
  if (request(what, tid, address, data) < 0) throw errno_error(errno, doing, "thread " + std::to_string(tid));
}

}  // namespace medes::trace
