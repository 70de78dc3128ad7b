#include "common/fault_point.h"

#include <csignal>
#include <cstdlib>
#include <cstring>

namespace medes::detail {

const char* const g_fault_point = std::getenv("MEDES_FAULT");

void at_fault_point(const char* name) noexcept {
  constexpr char kStop[] = "stop:";
  constexpr size_t kStopChars = sizeof kStop - 1;
  if (std::strcmp(name, g_fault_point) == 0) raise(SIGKILL);
  if (std::strncmp(g_fault_point, kStop, kStopChars) == 0 &&
      std::strcmp(name, g_fault_point + kStopChars) == 0)
    raise(SIGSTOP);  // this thread, which goes no further than here
}

}  // namespace medes::detail
