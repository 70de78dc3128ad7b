#include "procfs/proc_text.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <csignal>
#include <cstdlib>

#include "common/error.h"

namespace medes {
namespace {

constexpr uint64_t kPageMask = kPageBytes - 1;

// Takes the next line off the front.
std::string_view next_line(std::string_view& rest) {
  const size_t end = std::min(rest.find('\n'), rest.size());
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return line;
}

std::string_view next_word(std::string_view& rest) {
  rest.remove_prefix(std::min(rest.find_first_not_of(" \t"), rest.size()));
  const size_t end = std::min(rest.find_first_of(" \t\n"), rest.size());
  const std::string_view word = rest.substr(0, end);
  rest.remove_prefix(end);
  return word;
}

// Takes a number off the front. False when there is none, or it does not fit.
template <typename T>
bool take_number(std::string_view& s, T& out, int base = 10) {
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), out, base);
  if (error != std::errc()) return false;
  s.remove_prefix(static_cast<size_t>(end - s.data()));
  return true;
}

bool skip(std::string_view& s, std::string_view prefix) {
  if (!s.starts_with(prefix)) return false;
  s.remove_prefix(prefix.size());
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

bool parse_mapping(std::string_view line, Vma& v) {
  uint64_t major = 0, minor = 0;
  if (!take_number(line, v.begin, 16) || !skip(line, "-") || !take_number(line, v.end, 16) ||
      !skip(line, " "))
    return false;
  if (line.size() < 5 || v.begin >= v.end) return false;
  v.prot = (line[0] == 'r' ? PROT_READ : 0u) | (line[1] == 'w' ? PROT_WRITE : 0u) |
           (line[2] == 'x' ? PROT_EXEC : 0u);
  v.shared = line[3] == 's';
  line.remove_prefix(4);
  if (!skip(line, " ") || !take_number(line, v.offset, 16) || !skip(line, " ") ||
      !take_number(line, major, 16) || !skip(line, ":") || !take_number(line, minor, 16) ||
      !skip(line, " ") || !take_number(line, v.inode))
    return false;
  v.device = static_cast<uint32_t>(major << 20 | minor);
  const size_t at = line.find_first_not_of(' ');
  v.path = at == std::string_view::npos ? std::string() : std::string(line.substr(at));
  v.kind = kind_of(v);
  return true;
}

// The first line that begins so, without that; nothing otherwise.
std::optional<std::string_view> line_of(std::string_view text, std::string_view begin) {
  while (!text.empty()) {
    std::string_view line = next_line(text);
    if (skip(line, begin)) return line;
  }
  return std::nullopt;
}

}  // namespace

std::vector<Vma> parse_maps(const std::string& text) {
  std::vector<Vma> vmas;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view line = next_line(rest);
    Vma v;
    if (!parse_mapping(line, v))
      throw Error(Code::corrupt, "a line of the maps file is not understood", std::string(line));
    if (!vmas.empty() && v.begin < vmas.back().end)
      throw Error(Code::corrupt, "the maps file is not ascending", std::string(line));
    vmas.push_back(std::move(v));
    if (vmas.size() > kMaxVmas) throw Error(Code::limit_exceeded, "too many memory mappings");
  }
  return vmas;
}

std::vector<AddressRange> flagged_ranges(std::string_view smaps, std::string_view flag) {
  const std::string wanted = " " + std::string(flag);
  std::vector<AddressRange> out;
  AddressRange current;
  while (!smaps.empty()) {
    std::string_view line = next_line(smaps);
    if (line.starts_with("VmFlags:")) {
      if (line.find(wanted) != std::string_view::npos) out.push_back(current);
      continue;
    }
    AddressRange range;  // fields begin with a capital, which is no such digit, or have no dash behind it
    if (take_number(line, range.begin, 16) && skip(line, "-") && take_number(line, range.end, 16) &&
        line.starts_with(' '))
      current = range;
  }
  return out;
}

ProcessStat parse_stat(std::string_view text, const std::string& object) {
  const auto damaged = [&] { return Error(Code::corrupt, "the stat file is not understood", object); };
  // Fields as proc(5) numbers them.
  constexpr size_t kState = 3, kParent = 4, kSession = 6, kFlags = 9, kUserTicks = 14, kStart = 22,
                   kPending = 31, kProcessor = 39, kArguments = 48, kLast = 51;
  constexpr uint64_t kExiting = 0x4, kOfKernel = 0x200000;  // PF_EXITING, PF_KTHREAD
  const size_t name_end = text.rfind(')');                  // the name before it may hold anything
  if (name_end == std::string_view::npos) throw damaged();
  text.remove_prefix(name_end + 1);
  std::array<uint64_t, kLast + 1> fields{};
  const std::string_view state = next_word(text);
  if (state.size() != 1) throw damaged();
  for (size_t i = kState + 1; i <= kLast; ++i) {
    std::string_view word = next_word(text);
    const bool negative = skip(word, "-");
    if (!take_number(word, fields[i]) || !word.empty()) throw damaged();
    if (negative) fields[i] = 0 - fields[i];
  }
  ProcessStat stat;
  stat.state = state[0];
  stat.parent = static_cast<pid_t>(fields[kParent]);
  stat.session = static_cast<pid_t>(fields[kSession]);
  stat.of_kernel = (fields[kFlags] & kOfKernel) != 0;
  stat.dying = (fields[kFlags] & kExiting) != 0 || (fields[kPending] >> (SIGKILL - 1) & 1) != 0;
  stat.user_ticks = fields[kUserTicks];
  stat.start_time_ticks = fields[kStart];
  stat.processor = fields[kProcessor] <= INT_MAX ? static_cast<int>(fields[kProcessor]) : -1;
  stat.arguments = {fields[kArguments], fields[kArguments + 1]};
  stat.environment = {fields[kArguments + 2], fields[kArguments + 3]};
  return stat;
}

uint64_t field_of(const std::string& text, const char* name, int base) {
  const std::string key = std::string(name) + ":";
  size_t at = text.starts_with(key) ? 0 : text.find("\n" + key);
  if (at == std::string::npos) return 0;
  at += key.size() + (at == 0 ? 0 : 1);
  return std::strtoull(text.c_str() + at, nullptr, base);
}

std::optional<SleepingCall> parse_syscall(std::string_view text) {
  SleepingCall call;
  if (!take_number(text, call.number) || call.number < 0) return std::nullopt;
  const auto take = [&](uint64_t& out) { return skip(text, " 0x") && take_number(text, out, 16); };
  for (uint64_t& argument : call.arguments)
    if (!take(argument)) return std::nullopt;
  if (!take(call.stack_pointer)) return std::nullopt;
  return call;
}

// "se.exec_start       :        924930.686183", in milliseconds.
SchedTimes parse_sched(std::string_view text) {
  SchedTimes out;
  (void)next_line(text);  // the thread's name, which may be anything
  const auto number_of = [&](std::string_view name) -> std::optional<std::string_view> {
    auto line = line_of(text, name);
    const size_t colon = line ? line->find(':') : std::string_view::npos;
    if (colon == std::string_view::npos) return std::nullopt;
    line->remove_prefix(colon + 1);
    return next_word(*line);
  };
  constexpr int64_t kMostMs = INT64_MAX / 1'000'000 - 1;
  if (auto time = number_of("se.exec_start")) {
    int64_t ms = 0, ns = 0;
    if (take_number(*time, ms) && skip(*time, ".") && take_number(*time, ns) && ms >= 0 && ms <= kMostMs &&
        ns >= 0 && ns < 1'000'000 && ms + ns != 0)  // 0: moved to another processor, and has not run there
      out.exec_start_ns = ms * 1'000'000 + ns;
  }
  if (auto count = number_of("nr_voluntary_switches")) {
    uint64_t n = 0;
    if (take_number(*count, n)) out.voluntary_switches = n;
  }
  return out;
}

// "number:controllers:path" a line; number 0 is cgroup v2.
std::vector<CgroupEntry> parse_cgroups(std::string_view text) {
  std::vector<CgroupEntry> out;
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    CgroupEntry entry;
    entry.unified = line.starts_with("0:");
    entry.controllers = "," + std::string(line.substr(first + 1, second - first - 1)) + ",";
    entry.path = line.substr(second + 1);
    out.push_back(std::move(entry));
  }
  return out;
}

void append_pids(std::string_view text, std::vector<pid_t>& out) {
  while (!text.empty()) {
    std::string_view line = next_line(text);
    pid_t pid = 0;
    if (take_number(line, pid) && pid > 0) out.push_back(pid);  // 0: a process of another pid namespace
  }
}

uint64_t memory_stat_field(std::string_view text, std::string_view name) {
  auto line = line_of(text, std::string(name) + " ");
  uint64_t value = 0;
  if (line) (void)take_number(*line, value);
  return value;
}

uint64_t limit_of(std::string_view text) {
  uint64_t value = 0;
  return take_number(text, value) ? value : UINT64_MAX;
}

// "id parent device root point options [fields] - type source options" a line.
std::vector<CgroupMount> parse_cgroup_mounts(std::string_view text) {
  std::vector<CgroupMount> out;
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    const size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    std::string_view before = line.substr(0, dash), after = line.substr(dash + 3);
    for (int skipped = 0; skipped < 3; ++skipped) (void)next_word(before);
    CgroupMount mount;
    mount.root = next_word(before), mount.point = next_word(before);
    const std::string_view type = next_word(after);
    (void)next_word(after);  // source
    mount.controllers = "," + std::string(next_word(after)) + ",";
    mount.unified = type == "cgroup2";
    if (!mount.point.empty() && (mount.unified || type == "cgroup")) out.push_back(std::move(mount));
  }
  return out;
}

// Fixed buffers as listed below "UserBufs:": "    0: 0x7f…/4096", or "    0: <none>" for an empty slot.
void append_registered_buffers(std::string_view info, std::vector<AddressRange>& out) {
  bool listed = false;
  while (!info.empty()) {
    std::string_view line = next_line(info);
    if (!listed) {
      listed = line.starts_with("UserBufs:");
      continue;
    }
    const size_t colon = line.find(": ");
    if (!line.starts_with(' ') || colon == std::string_view::npos) return;
    line.remove_prefix(colon + 2);
    uint64_t begin = 0, bytes = 0;
    if (!skip(line, "0x")) continue;
    if (!take_number(line, begin, 16) || !skip(line, "/") || !take_number(line, bytes)) return;
    if (bytes == 0 || begin > UINT64_MAX - kPageMask || bytes > UINT64_MAX - kPageMask - begin) continue;
    out.push_back({begin & ~kPageMask, (begin + bytes + kPageMask) & ~kPageMask});
  }
}

std::optional<uint64_t> pending_of(std::string_view info) {
  auto line = line_of(info, "pending:");
  if (!line) return std::nullopt;
  std::string_view word = next_word(*line);
  uint64_t n = 0;
  return take_number(word, n) ? std::optional(n) : std::nullopt;
}

}  // namespace medes
