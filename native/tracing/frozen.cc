#include "tracing/frozen.h"

#include <fstream>
#include <string>

#include "procfs/proc.h"

namespace medes {
namespace {

bool can_freeze(bool unified, const std::string& controllers) {
  return unified || controllers.find(",freezer,") != std::string::npos;
}

std::string own_mounts() {
  try {
    return read_proc_file("/proc/self/mountinfo", 0, 16u << 20);
  } catch (const Error&) {
    return {};
  }
}

std::string first_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// The nearest frozen one of `path` and those above it.
std::string frozen_at(const CgroupMount& mount, std::string path) {
  while (path.size() > 1 && path.starts_with('/')) {
    const bool below_root = mount.root.size() > 1 && path.starts_with(mount.root);
    const std::string folder = mount.point + (below_root ? path.substr(mount.root.size()) : path);
    if (mount.unified) {
      if (first_word(folder + "/cgroup.freeze") == "1") return path;
    } else if (const auto state = first_word(folder + "/freezer.state");
               state == "FROZEN" || state == "FREEZING") {
      return path;
    }
    path.resize(path.rfind('/'));
  }
  return {};
}

}  // namespace

std::string frozen_cgroup_of(pid_t pid) {
  std::string text;
  try {
    text = read_proc_file("/proc/" + std::to_string(pid) + "/cgroup", pid, 65536);
  } catch (const Error&) {
    return {};
  }
  // Looked up each time: it is asked for only when something does not stop, and containers come with mounts
  // of their own.
  const auto mounts = parse_cgroup_mounts(own_mounts());
  for (const auto& entry : parse_cgroups(text)) {
    const bool unified = entry.controllers == ",,";
    if (!can_freeze(unified, entry.controllers)) continue;
    for (const auto& mount : mounts) {
      if (mount.unified != unified || !can_freeze(unified, mount.controllers)) continue;
      if (auto path = frozen_at(mount, entry.path); !path.empty()) return path;
    }
  }
  return {};
}

Error frozen_error(pid_t pid, const std::string& cgroup) {
  return Error(Code::busy, "its cgroup " + cgroup + " is frozen", "pid " + std::to_string(pid),
               "thaw it (docker unpause), then try again");
}

void require_thawed(pid_t pid) {
  if (const auto path = frozen_cgroup_of(pid); !path.empty()) throw frozen_error(pid, path);
}

}  // namespace medes
