// How much memory a process may still take before its memory cgroup, or one above it, kills.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace medes {

class MemoryRoom {
 public:
  MemoryRoom() = default;
  // Remembers the groups, since the process may end before its children do. Of one that is gone, or whose
  // groups cannot be seen, nothing is known. Tests have folders of their own.
  explicit MemoryRoom(pid_t pid, const std::string& cgroup_root = "/sys/fs/cgroup",
                      std::string proc = "/proc");
  // The least over the groups. File cache and slab that can be reclaimed count as free, and what can be
  // swapped out. Nothing without a limit. Some 0.1 ms a group that has one.
  std::optional<uint64_t> bytes() const;
  // Whether that is so much, or there is no limit. A quarter of that time where more than this is unused.
  bool has(uint64_t bytes) const;

 private:
  std::optional<uint64_t> least(uint64_t enough) const;

  std::string proc_;
  bool unified_ = false;
  std::vector<std::string> groups_;  // folders, the process's own first
};

}  // namespace medes
