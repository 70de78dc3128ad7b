// Can the live driver run here? Tried on a child of our own, never on anyone else's process.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <system_error>

#include "common/unique_fd.h"
#include "process/fault_server.h"
#include "tracing/ptrace_calls.h"

namespace medes {
namespace {

using Missing = std::vector<std::pair<std::string, std::string>>;

std::string why(int err) { return std::generic_category().message(err); }

void probe_userfaultfd(Missing& missing) {
  const UniqueFd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd) {
    const int err = errno;
    missing.emplace_back("userfaultfd: " + why(err),
                         err == ENOSYS
                             ? "a kernel with CONFIG_USERFAULTFD"
                             : "CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1 and a seccomp "
                               "profile that lets userfaultfd through");
    return;
  }
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
                 UFFD_FEATURE_EVENT_UNMAP;
  if (ioctl(fd.get(), UFFDIO_API, &api) != 0)
    missing.emplace_back("userfaultfd events: " + why(errno), "Linux 4.11 and CAP_SYS_PTRACE");
}

// A child that waits to be killed; we stop it and take a descriptor of it.
void probe_child(Missing& missing) {
  const pid_t child = fork();
  if (child < 0) {
    missing.emplace_back("fork: " + why(errno), "room for one more process");
    return;
  }
  if (child == 0) {
    for (;;) pause();
  }
  if (trace::request(trace::kSeize, child, 0, trace::kOptionSysgood) < 0) {
    missing.emplace_back("ptrace: " + why(errno), "CAP_SYS_PTRACE (docker: --cap-add SYS_PTRACE)");
  } else {
    const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, child, 0)));
    const int err_open = errno;
    const UniqueFd taken(process ? static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), 0, 0)) : -1);
    // A child without a standard input answers EBADF, which shows just as well that the call is there.
    if (!process || (!taken && errno != EBADF))
      missing.emplace_back("pidfd_getfd: " + why(process ? errno : err_open), "Linux 5.6 or later");
  }
  kill(child, SIGKILL);
  (void)waitpid(child, nullptr, __WALL);
}

}  // namespace

Missing probe_live() {
  Missing missing;
#if defined(__x86_64__)
  probe_userfaultfd(missing);
  probe_child(missing);
#else
  missing.emplace_back("processor: only x86-64 has its call numbers here", "an x86-64 machine");
#endif
  return missing;
}

}  // namespace medes
