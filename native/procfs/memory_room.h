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
  // groups cannot be seen, nothing is known.
  explicit MemoryRoom(pid_t pid);
  // The least over the groups; file cache and what can be swapped out count as free. Nothing without a limit.
  // Some 0.1 ms a group that has one.
  std::optional<uint64_t> bytes() const;

 private:
  std::vector<std::string> groups_;  // folders, the process's own first
};

}  // namespace medes
