// System calls by number: what of them a stop must know. x86-64 only, like all of the live driver.
#pragma once

#include <sys/syscall.h>
#include <sys/user.h>

#include <cstdint>

namespace medes {

// Numbers that the headers here may lack.
inline constexpr long kSysEpollPwait2 = 441, kSysFutexWaitv = 449, kSysFutexWait = 455;

inline constexpr uint64_t kUserCode64 = 0x33;  // the code segment of 64-bit user code

inline constexpr uint16_t kSyscallInstruction = 0x050f;  // its two bytes, as a number

// The slots of a call's arguments, in their order.
inline uint64_t argument(const user_regs_struct& r, int index) {
  const unsigned long long slots[] = {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9};
  return slots[index];
}
inline void set_argument(user_regs_struct& r, int index, uint64_t value) {
  unsigned long long* const slots[] = {&r.rdi, &r.rsi, &r.rdx, &r.r10, &r.r8, &r.r9};
  *slots[index] = value;
}

}  // namespace medes
