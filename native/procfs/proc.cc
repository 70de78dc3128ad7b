#include "procfs/proc.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string_view>

#include "common/error.h"
#include "common/unique_fd.h"
#include "procfs/pagemap.h"

namespace medes {
namespace {

constexpr int kMapsTries = 100;

std::string pid_object(pid_t pid) { return "pid " + std::to_string(pid); }
std::string proc_path(pid_t pid, const char* name) { return "/proc/" + std::to_string(pid) + "/" + name; }

struct DirCloser {
  void operator()(DIR* d) const { closedir(d); }
};
using Dir = std::unique_ptr<DIR, DirCloser>;

void add_children(const std::multimap<pid_t, pid_t>& children, std::vector<pid_t>& out,
                  std::set<pid_t>& seen) {
  for (size_t i = 0; i < out.size(); ++i) {
    auto [b, e] = children.equal_range(out[i]);
    for (auto it = b; it != e; ++it)
      if (seen.insert(it->second).second) out.push_back(it->second);
    if (out.size() > kMaxProcesses) throw Error(Code::limit_exceeded, "too many processes in one sandbox");
  }
}

void collect_cgroup(const std::string& path, std::vector<pid_t>& out, int depth) {
  if (depth > 32) throw Error(Code::limit_exceeded, "cgroups nest too deeply", path);
  const std::string text = read_proc_file(path + "/cgroup.procs", 0);
  append_pids(text, out);
  Dir dir(opendir(path.c_str()));
  if (!dir) throw errno_error(errno, "cannot list the cgroup", path);
  while (dirent* entry = readdir(dir.get())) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
      collect_cgroup(path + "/" + entry->d_name, out, depth + 1);
  }
}

// The main thread may end before others.
bool lives(pid_t pid, const ProcessStat& stat) {
  return (stat.state != 'Z' && stat.state != 'X') || is_alive(pid);
}

}  // namespace

std::string read_proc_file(const std::string& path, pid_t pid, size_t max_bytes) {
  const std::string object = pid > 0 ? pid_object(pid) : path;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const int err = errno;
    if (pid > 0 && err == ENOENT) throw Error(Code::process_gone, "the process does not exist", object);
    throw errno_error(err, pid > 0 ? "cannot open " + path : "cannot open", object);
  }
  std::string text;
  size_t size = 0;
  for (;;) {
    // Most of these files are short and read by the thousand: a large buffer would cost more than the
    // reading.
    if (text.size() - size < 4096) text.resize(2 * size + 8192);
    const ssize_t n = read(fd, text.data() + size, text.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int err = errno;
      close(fd);
      throw errno_error(err, "cannot read " + path, object);
    }
    if (n == 0) break;
    size += static_cast<size_t>(n);
    if (size > max_bytes) {
      close(fd);
      throw Error(Code::limit_exceeded, path + " is too large", object);
    }
  }
  close(fd);
  text.resize(size);
  return text;
}

pid_t live_thread(pid_t pid) {
  const auto alive = [pid](pid_t tid) {
    try {
      const ProcessStat stat = read_stat(tid);
      if (stat.state == 'Z' || stat.state == 'X') return false;
      return tid == pid || !stat.dying;
    } catch (const Error& e) {
      if (e.code != Code::process_gone) throw;
      return false;
    }
  };
  if (alive(pid)) return pid;
  for (pid_t tid : threads_of(pid))
    if (tid != pid && alive(tid)) return tid;
  throw Error(Code::process_gone, "the process has exited", pid_object(pid));
}

bool is_alive(pid_t pid) {
  try {
    return live_thread(pid) > 0;
  } catch (const Error& e) {
    if (e.code != Code::process_gone) throw;
    return false;
  }
}

uint64_t living_start_time(pid_t pid) {
  try {
    const ProcessStat stat = read_stat(pid);
    return lives(pid, stat) ? stat.start_time_ticks : 0;
  } catch (const Error& e) {
    if (e.code != Code::process_gone) throw;
    return 0;
  }
}

// The kernel hands the file out in pieces; mappings that change in between can make it contradict itself.
std::vector<Vma> read_maps(pid_t pid) {
  for (int tries = 0; tries < kMapsTries; ++tries) {
    std::string text = read_proc_file(proc_path(pid, "maps"), pid);
    if (text.empty()) text = read_proc_file(proc_path(live_thread(pid), "maps"), pid);
    if (text.empty()) throw Error(Code::process_gone, "the process has no memory any more", pid_object(pid));
    try {
      return parse_maps(text);
    } catch (const Error& e) {
      if (e.code != Code::corrupt) throw;
    }
  }
  throw Error(Code::busy, "its mappings change faster than they can be read", pid_object(pid),
              "try again later");
}

ProcessStat read_stat(pid_t pid) {
  return parse_stat(read_proc_file(proc_path(pid, "stat"), pid, 65536), pid_object(pid));
}

std::vector<pid_t> all_processes() {
  Dir dir(opendir("/proc"));
  if (!dir) throw errno_error(errno, "cannot list /proc");
  std::vector<pid_t> out;
  while (dirent* entry = readdir(dir.get())) {
    pid_t pid = 0;
    const char* name = entry->d_name;
    const auto [p, ec] = std::from_chars(name, name + std::strlen(name), pid);
    if (ec == std::errc() && *p == '\0') out.push_back(pid);
  }
  return out;
}

std::vector<AddressRange> argument_ranges(pid_t pid) {
  const ProcessStat stat = read_stat(pid);
  return {stat.arguments, stat.environment};
}

std::vector<AddressRange> ranges_with_flag(pid_t pid, std::string_view flag) {
  return flagged_ranges(read_proc_file(proc_path(pid, "smaps"), pid), flag);
}

std::vector<std::pair<pid_t, ProcessStat>> living_processes() {
  std::vector<std::pair<pid_t, ProcessStat>> out;
  for (pid_t pid : all_processes()) {
    try {
      const ProcessStat stat = read_stat(pid);
      if (lives(pid, stat)) out.emplace_back(pid, stat);
    } catch (const Error& e) {
      if (e.code != Code::process_gone) throw;  // exited between readdir and here
    }
  }
  return out;
}

std::vector<pid_t> process_tree(std::span<const pid_t> roots) {
  std::vector<pid_t> out;
  std::set<pid_t> seen;
  for (pid_t root : roots) {
    if (root <= 0) throw Error(Code::invalid_argument, "a pid must be positive", pid_object(root));
    (void)read_stat(root);
    if (seen.insert(root).second) out.push_back(root);
  }
  std::multimap<pid_t, pid_t> children;
  for (const auto& [pid, stat] : living_processes()) children.emplace(stat.parent, pid);
  add_children(children, out, seen);
  return out;
}

std::vector<pid_t> cgroup_pids(const std::string& path) {
  std::vector<pid_t> out;
  collect_cgroup(path, out, 0);
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  if (out.size() > kMaxProcesses) throw Error(Code::limit_exceeded, "too many processes in the cgroup", path);
  return out;
}

std::vector<pid_t> threads_of(pid_t pid) {
  Dir dir(opendir(proc_path(pid, "task").c_str()));
  if (!dir) {
    const int err = errno;
    if (err == ENOENT) throw Error(Code::process_gone, "the process does not exist", pid_object(pid));
    throw errno_error(err, "cannot list threads", pid_object(pid));
  }
  std::vector<pid_t> out;
  while (dirent* entry = readdir(dir.get())) {
    pid_t tid = 0;
    const char* name = entry->d_name;
    const auto [p, ec] = std::from_chars(name, name + std::strlen(name), tid);
    if (ec == std::errc() && *p == '\0') out.push_back(tid);
    if (out.size() > kMaxThreads) throw Error(Code::limit_exceeded, "too many threads", pid_object(pid));
  }
  return out;
}

namespace {

// Pages of files and shared memory that only this process maps.
uint64_t private_file_pages(pid_t pid) {
  const UniqueFd map = open_pagemap(pid);
  uint64_t pages = 0;
  for (const Vma& v : read_maps(pid)) {
    if (v.inode == 0) continue;
    for_pagemap(map.get(), pid, v.begin, v.end, [&](uint64_t, const PagemapEntry& e) {
      pages += e.present() && e.of_file() && e.exclusive();
    });
  }
  return pages;
}

uint64_t private_bytes_of(pid_t pid) {
  const std::string text = read_proc_file(proc_path(live_thread(pid), "smaps_rollup"), pid);
  const auto field = [&](const char* name) { return field_of(text, name) * 1024; };
  const uint64_t huge = field("Private_Hugetlb");
  // Rarely anything is shared since a fork, and the sums of private pages are then all there is to know.
  if (field("Pss_Anon") / kPageBytes >= field("Anonymous") / kPageBytes)
    return huge + field("Private_Clean") + field("Private_Dirty");
  return huge + field("Pss_Anon") + private_file_pages(pid) * kPageBytes;
}

}  // namespace

uint64_t private_bytes(std::span<const pid_t> pids) {
  uint64_t bytes = 0;
  size_t gone = 0;
  for (pid_t pid : pids) {
    try {
      bytes += private_bytes_of(pid);
    } catch (const Error& e) {
      // One of several that has ended meanwhile holds nothing.
      if (e.code != Code::process_gone || ++gone == pids.size()) throw;
    }
  }
  return bytes;
}

AddressSpace space_of(std::span<const ProcessLayout> processes) {
  constexpr uint64_t kGapBytes = 1ull << 30;
  std::vector<AddressRange> all;
  for (const auto& p : processes)
    for (const auto& v : p.vmas)
      if (v.path != "[vsyscall]") all.push_back({v.begin, v.end});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  AddressSpace space;
  auto& out = space.ranges;
  for (const auto& r : all) {
    if (!out.empty() && r.begin < out.back().end + kGapBytes)
      out.back().end = std::max(out.back().end, r.end);
    else
      out.push_back(r);
  }
  while (out.size() > kMaxRanges) {
    size_t best = 1;
    for (size_t i = 2; i < out.size(); ++i)
      if (out[i].begin - out[i - 1].end < out[best].begin - out[best - 1].end) best = i;
    out[best - 1].end = out[best].end;
    out.erase(out.begin() + static_cast<ptrdiff_t>(best));
  }
  return space;
}

}  // namespace medes
