#include "memory/memory_room.h"

#include <algorithm>

#include "common/error.h"
#include "memory/proc.h"

namespace medes {
namespace {

constexpr const char* kRoot = "/sys/fs/cgroup";
constexpr uint64_t kNoLimit = 1ull << 62;  // cgroup v1 has no word for it but the largest number of pages
constexpr size_t kMaxDepth = 64;

// Cgroup v2's name of a file, and v1's.
struct Names {
  const char *limit, *used;
  const char *swap_limit, *swap_used;  // v1's are of memory and swap together
};
constexpr Names kNames[] = {{"/memory.max", "/memory.current", "/memory.swap.max", "/memory.swap.current"},
                            {"/memory.limit_in_bytes", "/memory.usage_in_bytes",
                             "/memory.memsw.limit_in_bytes", "/memory.memsw.usage_in_bytes"}};

std::optional<uint64_t> number_in(const std::string& path) {
  try {
    return limit_of(read_proc_file(path, 0, 4096));
  } catch (const Error&) {
    return std::nullopt;
  }
}

uint64_t cache_of(const std::string& group) {
  const std::string text = read_proc_file(group + "/memory.stat", 0, 1u << 20);
  // v1 has each field twice; those of the whole subtree are what the limit is for.
  const bool twice = text.find("\ntotal_inactive_file ") != std::string::npos;
  const std::string prefix = twice ? "total_" : "";
  return memory_stat_field(text, prefix + "inactive_file") + memory_stat_field(text, prefix + "active_file") +
         memory_stat_field(text, "slab_reclaimable");
}

// What the kernel may still swap out of the group to make room in it.
uint64_t swap_in(const std::string& group, const Names& names) {
  const uint64_t free = field_of(read_proc_file("/proc/meminfo", 0, 1u << 20), "SwapFree") * 1024;
  if (free == 0) return 0;
  const auto limit = number_in(group + names.swap_limit), used = number_in(group + names.swap_used);
  if (!limit || !used || *limit >= kNoLimit) return free;
  return std::min(free, *limit - std::min(*limit, *used));
}

std::optional<uint64_t> room_in(const std::string& group) {
  for (const Names& names : kNames) {
    const auto limit = number_in(group + names.limit);
    if (!limit) continue;
    if (*limit >= kNoLimit) return std::nullopt;
    const auto used = number_in(group + names.used);
    if (!used) continue;
    try {
      const uint64_t held = *used - std::min(*used, cache_of(group));
      return *limit - std::min(*limit, held) + swap_in(group, names);
    } catch (const Error&) {
      return std::nullopt;
    }
  }
  return std::nullopt;
}

}  // namespace

MemoryRoom::MemoryRoom(pid_t pid) {
  std::string text;
  try {
    text = read_proc_file("/proc/" + std::to_string(pid) + "/cgroup", pid, 1u << 20);
  } catch (const Error&) {
    return;
  }
  std::string top, path;
  for (const auto& entry : parse_cgroups(text)) {
    const bool v1 = entry.controllers.find(",memory,") != std::string::npos;
    if (!v1 && (!entry.unified || !top.empty())) continue;
    top = v1 ? std::string(kRoot) + "/memory" : kRoot;
    path = entry.path;
  }
  if (top.empty()) return;
  for (size_t depth = 0; depth < kMaxDepth; ++depth) {
    while (path.ends_with('/')) path.pop_back();
    groups_.push_back(top + path);
    if (path.empty()) return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

std::optional<uint64_t> MemoryRoom::bytes() const {
  std::optional<uint64_t> least;
  for (const auto& group : groups_)
    if (const auto room = room_in(group)) least = std::min(least.value_or(*room), *room);
  return least;
}

}  // namespace medes
