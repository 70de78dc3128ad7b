#include "live/frozen.h"

#include <fstream>
#include <sstream>
#include <vector>

#include "memory/proc.h"

namespace medes {
namespace {

struct Mount {
  bool unified = false;
  std::string root, point;  // what of the hierarchy is mounted, and where
};

// Where the hierarchies that can freeze are mounted. Looked up each time: it is asked for only when something
// does not stop, and containers come with mounts of their own.
std::vector<Mount> freezer_mounts() {
  std::vector<Mount> out;
  std::ifstream file("/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash)), after(line.substr(dash + 3));
    std::string id, parent, device, type, source, options;
    Mount mount;
    if (!(before >> id >> parent >> device >> mount.root >> mount.point) ||
        !(after >> type >> source >> options))
      continue;
    mount.unified = type == "cgroup2";
    const std::string list = "," + options + ",";
    if (mount.unified || (type == "cgroup" && list.find(",freezer,") != std::string::npos))
      out.push_back(mount);
  }
  return out;
}

std::string first_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// The nearest frozen one of `path` and those above it.
std::string frozen_at(const Mount& mount, std::string path) {
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
  const auto mounts = freezer_mounts();
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",freezer,") == std::string::npos) continue;
    for (const auto& mount : mounts) {
      if (mount.unified != unified) continue;
      if (auto path = frozen_at(mount, line.substr(second + 1)); !path.empty()) return path;
    }
  }
  return {};
}

Error frozen_error(pid_t pid, const std::string& cgroup) {
  return Error(Code::busy, "its cgroup " + cgroup + " is frozen", "pid " + std::to_string(pid),
               "thaw it (docker unpause), then try again");
}

}  // namespace medes
