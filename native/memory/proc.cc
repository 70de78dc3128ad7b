#include "memory/proc.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <csignal>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string_view>

#include "common/error.h"
#include "common/unique_fd.h"
#include "memory/pagemap.h"

namespace medes {
namespace {

constexpr int kMapsTries = 100;

std::string pid_object(pid_t pid) { return "pid " + std::to_string(pid); }
std::string proc_path(pid_t pid, const char* name) { return "/proc/" + std::to_string(pid) + "/" + name; }

struct DirCloser {
  void operator()(DIR* d) const { closedir(d); }
};
using Dir = std::unique_ptr<DIR, DirCloser>;

bool parse_hex(std::string_view& s, uint64_t& out) {
  auto [p, ec] = std::from_chars(s.data(), s.data() + s.size(), out, 16);
  if (ec != std::errc()) return false;
  s.remove_prefix(static_cast<size_t>(p - s.data()));
  return true;
}

bool skip(std::string_view& s, char c) {
  if (s.empty() || s.front() != c) return false;
  s.remove_prefix(1);
  return true;
}

VmaKind kind_of(const Vma& v) {
  const std::string_view path = v.path;
  if (v.shared) {
    if (path.starts_with("/memfd:")) return VmaKind::memfd;
    if (path.starts_with("/dev/zero") || path.starts_with("[anon_shmem")) return VmaKind::shared_anonymous;
    return VmaKind::other;
  }
  if (path == "[heap]") return VmaKind::heap;
  if (path == "[stack]") return VmaKind::stack;
  if (v.inode != 0 || path.starts_with('/')) return VmaKind::file_private;
  if (path.empty() || path.starts_with("[anon:")) return VmaKind::anonymous;
  return VmaKind::other;  // [vdso], [vvar], [vsyscall], [uprobes] …
}

bool parse_line(std::string_view line, Vma& v) {
  uint64_t major = 0, minor = 0;
  if (!parse_hex(line, v.begin) || !skip(line, '-') || !parse_hex(line, v.end) || !skip(line, ' '))
    return false;
  if (line.size() < 5 || v.begin >= v.end) return false;
  v.prot = (line[0] == 'r' ? PROT_READ : 0u) | (line[1] == 'w' ? PROT_WRITE : 0u) |
           (line[2] == 'x' ? PROT_EXEC : 0u);
  v.shared = line[3] == 's';
  line.remove_prefix(4);
  if (!skip(line, ' ') || !parse_hex(line, v.offset) || !skip(line, ' ') || !parse_hex(line, major) ||
      !skip(line, ':') || !parse_hex(line, minor) || !skip(line, ' '))
    return false;
  v.device = static_cast<uint32_t>(major << 20 | minor);
  auto [p, ec] = std::from_chars(line.data(), line.data() + line.size(), v.inode, 10);
  if (ec != std::errc()) return false;
  line.remove_prefix(static_cast<size_t>(p - line.data()));
  const size_t at = line.find_first_not_of(' ');
  v.path = at == std::string_view::npos ? std::string() : std::string(line.substr(at));
  v.kind = kind_of(v);
  return true;
}

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
  const char* p = text.data();
  const char* end = p + text.size();
  while (p < end) {
    pid_t pid = 0;
    auto [next, ec] = std::from_chars(p, end, pid);
    if (ec != std::errc()) break;
    if (pid > 0) out.push_back(pid);  // 0: a process of another pid namespace
    p = next + 1;
  }
  Dir dir(opendir(path.c_str()));
  if (!dir) throw errno_error(errno, "cannot list the cgroup", path);
  while (dirent* entry = readdir(dir.get())) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
      collect_cgroup(path + "/" + entry->d_name, out, depth + 1);
  }
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

std::vector<Vma> parse_maps(const std::string& text) {
  std::vector<Vma> vmas;
  size_t at = 0;
  while (at < text.size()) {
    size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    Vma v;
    if (!parse_line(std::string_view(text).substr(at, end - at), v))
      throw Error(Code::corrupt, "a line of the maps file is not understood", text.substr(at, end - at));
    if (!vmas.empty() && v.begin < vmas.back().end)
      throw Error(Code::corrupt, "the maps file is not ascending", text.substr(at, end - at));
    vmas.push_back(std::move(v));
    if (vmas.size() > kMaxVmas) throw Error(Code::limit_exceeded, "too many memory mappings");
    at = end + 1;
  }
  return vmas;
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
  const std::string text = read_proc_file(proc_path(pid, "stat"), pid, 65536);
  const size_t close = text.rfind(')');  // the name before it may hold anything
  if (close == std::string::npos || close + 3 >= text.size())
    throw Error(Code::corrupt, "the stat file is not understood", pid_object(pid));
  ProcessStat stat;
  stat.state = text[close + 2];
  constexpr unsigned kExiting = 0x4;  // PF_EXITING
  unsigned long long start = 0, pending = 0;
  unsigned flags = 0;
  int parent = 0, session = 0;
  if (sscanf(text.c_str() + close + 3,
             "%d %*d %d %*d %*d %u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu"
             " %*u %*d %*u %*u %*u %*u %*u %*u %llu",
             &parent, &session, &flags, &start, &pending) != 5)
    throw Error(Code::corrupt, "the stat file is not understood", pid_object(pid));
  stat.dying = (flags & kExiting) != 0 || (pending >> (SIGKILL - 1) & 1) != 0;
  stat.parent = parent;
  stat.session = session;
  stat.start_time_ticks = start;
  return stat;
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
  const std::string text = read_proc_file(proc_path(pid, "stat"), pid, 65536);
  size_t at = text.rfind(')');                         // the name before it may hold anything
  constexpr int kArgumentsBegin = 48, kNameField = 2;  // fields as proc(5) numbers them
  for (int field = kNameField; field < kArgumentsBegin && at != std::string::npos; ++field)
    at = text.find(' ', at + 1);
  AddressRange arguments, environment;
  if (at == std::string::npos ||
      sscanf(text.c_str() + at, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &arguments.begin,
             &arguments.end, &environment.begin, &environment.end) != 4)
    throw Error(Code::corrupt, "the stat file is not understood", pid_object(pid));
  return {arguments, environment};
}

std::vector<AddressRange> ranges_with_flag(pid_t pid, std::string_view flag) {
  const std::string smaps = read_proc_file(proc_path(pid, "smaps"), pid);
  const std::string wanted = " " + std::string(flag);
  std::string_view rest = smaps;
  std::vector<AddressRange> out;
  AddressRange current;
  while (!rest.empty()) {
    const size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    const size_t dash = line.find('-');
    if (line.starts_with("VmFlags:")) {
      if (line.find(wanted) != std::string_view::npos) out.push_back(current);
    } else if (dash != std::string_view::npos && dash <= 16 &&
               line.find_first_not_of("0123456789abcdef") == dash) {
      char* after = nullptr;
      current.begin = std::strtoull(line.data(), &after, 16);
      current.end = std::strtoull(after + 1, nullptr, 16);
    }
  }
  return out;
}

std::vector<std::pair<pid_t, ProcessStat>> living_processes() {
  std::vector<std::pair<pid_t, ProcessStat>> out;
  for (pid_t pid : all_processes()) {
    try {
      const ProcessStat stat = read_stat(pid);
      if ((stat.state != 'Z' && stat.state != 'X') || is_alive(pid)) out.emplace_back(pid, stat);
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

uint64_t field_of(const std::string& text, const char* name, int base) {
  const std::string key = std::string(name) + ":";
  size_t at = text.starts_with(key) ? 0 : text.find("\n" + key);
  if (at == std::string::npos) return 0;
  at += key.size() + (at == 0 ? 0 : 1);
  return std::strtoull(text.c_str() + at, nullptr, base);
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
