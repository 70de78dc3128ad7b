// Named places at which a test may have this process killed: with MEDES_FAULT=<name> in the environment the
// process sends itself SIGKILL when it gets there, as a power cut or an operator would. With stop:<name> it
// stops there each time (SIGSTOP), until it is continued. Without the variable a point costs one load and one
// branch. The names are listed in docs/live-driver.md.
#pragma once

namespace medes {

namespace detail {
extern const char* const g_fault_point;  // value of MEDES_FAULT at start, or nullptr
void at_fault_point(const char* name) noexcept;
}  // namespace detail

inline void fault_point(const char* name) noexcept {
  if (detail::g_fault_point != nullptr) [[unlikely]]
    detail::at_fault_point(name);
}

}  // namespace medes
