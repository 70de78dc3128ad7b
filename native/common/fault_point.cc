#include "common/fault_point.h"

#include <csignal>
#include <cstdlib>
#include <cstring>

namespace medes::detail {

const char* const g_fault_point = std::getenv("MEDES_FAULT");

void die_at_fault_point(const char* name) noexcept {
  if (std::strcmp(name, g_fault_point) == 0) raise(SIGKILL);
}

}  // namespace medes::detail
