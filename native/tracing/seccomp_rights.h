// Calls are injected into threads whose seccomp filter is suspended meanwhile (PTRACE_O_SUSPEND_SECCOMP), so
// that no filter kills for them. The kernel allows that to few.
#pragma once

#include <string>

namespace medes {

struct MissingRight {
  std::string what, how;  // what stands in the way, and what to do about it
};
// Why this thread may not suspend another's filter; empty when it may.
MissingRight missing_seccomp_right();

}  // namespace medes
