// A frame for any registers and place: it lies below the top, has the size that was made room for, and brings
// back the stack and instruction pointers that the thread had.
#include <cstdint>
#include <cstring>
#include <vector>

#include "tracing/signal_frame.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  user_regs_struct registers{};
  if (size < 18) return 0;
  uint64_t top = 0, mask = 0;
  std::memcpy(&top, data, sizeof top);
  std::memcpy(&mask, data + 8, sizeof mask);
  top = top % (1ull << 47) + (1u << 16);
  // A legacy area and its header at least: what ptrace gives.
  std::vector<std::byte> xstate(576 + 64 * (data[16] % 32));
  std::memcpy(&registers, data + 17, std::min(size - 17, sizeof registers));
  std::memcpy(xstate.data(), data + 17, std::min(size - 17, xstate.size()));
  const SignalFrame frame = make_signal_frame(top, 0x1000, registers, mask, xstate);
  if (frame.address + frame.bytes.size() != top || frame.address % 16 != 8 ||
      frame.bytes.size() > signal_frame_bytes(xstate.size()))
    __builtin_trap();
  uint64_t stack = 0;
  constexpr size_t kStackAt = 8 + 40 + 15 * 8;  // return address, ucontext's head, fifteen registers
  std::memcpy(&stack, frame.bytes.data() + kStackAt, sizeof stack);
  if (stack != registers.rsp) __builtin_trap();
  return 0;
}
