// Two short instruction sequences that every program with a C, Go or Rust run time already contains, and
// that let an injected call return by itself: `syscall; ret` and `mov $15,%rax; syscall` (rt_sigreturn).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>

#include "image/image.h"

namespace medes {

struct Gadgets {
  uint64_t syscall_ret = 0;
  uint64_t sigreturn = 0;
};

// Searches the executable mappings; results are remembered per file. Throws unsupported when the program
// has none, process_gone, permission_denied.
Gadgets find_gadgets(pid_t pid, std::span<const Vma> vmas);

}  // namespace medes
