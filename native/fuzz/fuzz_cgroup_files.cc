// Any text as the files of control groups: a process's memberships, lists of pids, limits, sums and mounts.
#include <cstdint>
#include <string_view>
#include <vector>

#include "procfs/proc_text.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto& entry : parse_cgroups(text))
    if (entry.controllers.size() < 2 || entry.path.find('\n') != entry.path.npos) __builtin_trap();
  std::vector<pid_t> pids;
  append_pids(text, pids);
  for (const pid_t pid : pids)
    if (pid <= 0) __builtin_trap();
  (void)memory_stat_field(text, "inactive_file");
  (void)limit_of(text);
  for (const auto& mount : parse_cgroup_mounts(text))
    if (mount.point.empty() || mount.root.empty()) __builtin_trap();
  return 0;
}
