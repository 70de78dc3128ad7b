#include "procfs/memory_room.h"

#include <algorithm>
#include <utility>

#include "common/error.h"
#include "procfs/proc.h"

namespace medes {
namespace {

constexpr uint64_t kNoLimit = 1ull << 62;  // cgroup v1 has no word for it but the largest number of pages
constexpr size_t kMaxDepth = 64;

// Cgroup v2's name of a file, and v1's.
struct Names {
  const char *limit, *used;
  const char *swap_limit, *swap_used;  // v1's are of memory and swap together
};
constexpr Names kUnified{"/memory.max", "/memory.current", "/memory.swap.max", "/memory.swap.current"};
constexpr Names kV1{"/memory.limit_in_bytes", "/memory.usage_in_bytes", "/memory.memsw.limit_in_bytes",
                    "/memory.memsw.usage_in_bytes"};

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
uint64_t swap_in(const std::string& group, const Names& names, const std::string& proc) {
  const uint64_t free = field_of(read_proc_file(proc + "/meminfo", 0, 1u << 20), "SwapFree") * 1024;
  if (free == 0) return 0;
  const auto limit = number_in(group + names.swap_limit), used = number_in(group + names.swap_used);
  if (!limit || !used || *limit >= kNoLimit) return free;
  return std::min(free, *limit - std::min(*limit, *used));
}

// Of one group; nothing without a limit. No more is asked than tells whether there are `enough` bytes.
std::optional<uint64_t> room_in(const std::string& group, const Names& names, const std::string& proc,
                                uint64_t enough) {
  const auto limit = number_in(group + names.limit);
  if (!limit || *limit >= kNoLimit) return std::nullopt;
  const auto used = number_in(group + names.used);
  if (!used) return std::nullopt;
  const uint64_t unused = *limit - std::min(*limit, *used);
  if (unused >= enough) return unused;
  try {
    const uint64_t held = *used - std::min(*used, cache_of(group));
    return *limit - std::min(*limit, held) + swap_in(group, names, proc);
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

MemoryRoom::MemoryRoom(pid_t pid, const std::string& cgroup_root, std::string proc) : proc_(std::move(proc)) {
  std::string text;
  try {
    text = read_proc_file(proc_ + "/" + std::to_string(pid) + "/cgroup", pid, 1u << 20);
  } catch (const Error&) {
    return;
  }
  std::string top, path;
  for (const auto& entry : parse_cgroups(text)) {
    const bool v1 = entry.controllers.find(",memory,") != std::string::npos;
    if (!v1 && (!entry.unified || !top.empty())) continue;
    unified_ = !v1;
    top = v1 ? cgroup_root + "/memory" : cgroup_root;
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

std::optional<uint64_t> MemoryRoom::bytes() const { return least(UINT64_MAX); }

bool MemoryRoom::has(uint64_t bytes) const { return least(bytes).value_or(UINT64_MAX) >= bytes; }

std::optional<uint64_t> MemoryRoom::least(uint64_t enough) const {
  std::optional<uint64_t> least;
  for (const auto& group : groups_) {
    const auto room = room_in(group, unified_ ? kUnified : kV1, proc_, enough);
    if (room) least = std::min(least.value_or(*room), *room);
    if (least && *least < enough && enough != UINT64_MAX) return least;
  }
  return least;
}

}  // namespace medes
