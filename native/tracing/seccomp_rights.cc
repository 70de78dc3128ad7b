#include "tracing/seccomp_rights.h"

#include "common/error.h"
#include "procfs/proc.h"

namespace medes {

MissingRight missing_seccomp_right() {
  constexpr int kSysAdmin = 21;
  try {
    const std::string status = read_proc_file("/proc/thread-self/status", 0);
    if (field_of(status, "Seccomp") != 0)
      return {"the agent runs under a seccomp filter itself, and may not suspend a sandbox's",
              "run the agent without one (systemd: no SystemCallFilter=, RestrictAddressFamilies=, "
              "LockPersonality= and the like; docker: --security-opt seccomp=unconfined)"};
    if ((field_of(status, "CapEff", 16) >> kSysAdmin & 1) == 0)
      return {"the agent may not suspend a sandbox's seccomp filter", "give it CAP_SYS_ADMIN"};
  } catch (const Error&) {  // without /proc nothing else works either
  }
  return {};
}

}  // namespace medes
