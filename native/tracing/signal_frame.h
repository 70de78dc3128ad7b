// The kernel's own signal frame, written by us: rt_sigreturn restores from it every register, the floating
// point state and the signal mask. A thread that runs an injected call carries one on its stack, so that it
// finds back by itself when the agent is killed in that moment.
#pragma once

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/wiped.h"

namespace medes {

struct SignalFrame {
  uint64_t address = 0;  // of the first byte, and the stack pointer at the injected call
  WipedBytes bytes;      // to be written there
};

// What it takes at most, for a floating point state of `xstate_bytes`.
size_t signal_frame_bytes(size_t xstate_bytes);

// A frame that ends below `top`. `return_to` is the address of an rt_sigreturn sequence. A call that was
// interrupted to be restarted is set up to be made again, with its whole timeout where only the kernel itself
// knows what is left (and to return EINTR where it was restarted so before, and its number is lost).
SignalFrame make_signal_frame(uint64_t top, uint64_t return_to, const user_regs_struct& registers,
                              uint64_t signal_mask, std::span<const std::byte> xstate);

}  // namespace medes
