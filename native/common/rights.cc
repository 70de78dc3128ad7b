#include "common/rights.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "common/error.h"

namespace medes {

namespace {

struct Sets {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};  // of the calling thread
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3]{};

  bool get() { return syscall(SYS_capget, &header, data) == 0; }
  bool set() { return syscall(SYS_capset, &header, data) == 0; }
};

}  // namespace

void keep_only(std::span<const int> capabilities) {
  uint64_t kept = 0;
  for (const int c : capabilities) kept |= uint64_t{1} << (c & 63);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) throw errno_error(errno, "cannot give up new privileges");
  for (int c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; ++c)
    // A user without CAP_SETPCAP cannot, and needs it the less: its programs gain nothing by no_new_privs.
    if (!(kept >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) && errno != EPERM)
      throw errno_error(errno, "cannot drop a capability for good");
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    throw errno_error(errno, "cannot clear the ambient capabilities");
  Sets sets;
  if (!sets.get()) throw errno_error(errno, "cannot read the capabilities");
  for (size_t i = 0; i < _LINUX_CAPABILITY_U32S_3; ++i) {
    auto& part = sets.data[i];
    part.permitted &= static_cast<uint32_t>(kept >> (32 * i));
    part.effective = part.permitted;
    part.inheritable = 0;
  }
  if (!sets.set()) throw errno_error(errno, "cannot give up capabilities");
  const rlimit none{0, 0};
  if (setrlimit(RLIMIT_CORE, &none)) throw errno_error(errno, "cannot forbid core files");
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) throw errno_error(errno, "cannot forbid being traced");
}

void drop_thread_capabilities() noexcept {
  Sets none;
  (void)none.set();  // giving up never fails
}

}  // namespace medes
