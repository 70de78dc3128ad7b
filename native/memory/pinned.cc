// Memory of a process that the kernel or a device holds on to: it cannot be evicted without breaking its
// user, because the pin keeps the old page while the process would fault in a new one.
#include <dirent.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string_view>

#include "common/error.h"
#include "memory/proc.h"

namespace medes {
namespace {

std::string proc_path(pid_t pid, const std::string& name) {
  return "/proc/" + std::to_string(pid) + "/" + name;
}

// Fixed buffers as listed in an io_uring descriptor's fdinfo: "    0: 0x7f…/4096" below "UserBufs:".
void add_registered_buffers(const std::string& info, std::vector<AddressRange>& out) {
  size_t at = info.find("UserBufs:");
  if (at == std::string::npos) return;
  while ((at = info.find('\n', at)) != std::string::npos) {
    ++at;
    const size_t colon = info.find(": 0x", at);
    const size_t line_end = info.find('\n', at);
    if (colon == std::string::npos || (line_end != std::string::npos && colon > line_end)) break;
    char* after = nullptr;
    const uint64_t begin = std::strtoull(info.c_str() + colon + 2, &after, 16);
    if (*after != '/') break;
    const uint64_t bytes = std::strtoull(after + 1, nullptr, 10);
    const uint64_t mask = kPageBytes - 1;
    if (bytes != 0) out.push_back({begin & ~mask, (begin + bytes + mask) & ~mask});
  }
}

void add_locked(pid_t pid, std::vector<AddressRange>& out) {
  const std::string smaps = read_proc_file(proc_path(pid, "smaps"), pid);
  std::string_view rest = smaps;
  AddressRange current;
  while (!rest.empty()) {
    const size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    const size_t dash = line.find('-');
    if (line.starts_with("VmFlags:")) {
      if (line.find(" lo") != std::string_view::npos) out.push_back(current);
    } else if (dash != std::string_view::npos && dash <= 16 &&
               line.find_first_not_of("0123456789abcdef") == dash) {
      char* after = nullptr;
      current.begin = std::strtoull(line.data(), &after, 16);
      current.end = std::strtoull(after + 1, nullptr, 16);
    }
  }
}

}  // namespace

std::vector<AddressRange> pinned_ranges(pid_t pid, std::span<const Vma> vmas,
                                        std::vector<std::string>& notes) {
  const std::string object = "pid " + std::to_string(pid);
  std::vector<AddressRange> out;
  for (const auto& v : vmas) {
    if (v.path.starts_with("/[aio]"))
      throw Error(Code::unsupported, "asynchronous I/O may be in flight into its memory", object,
                  "close the io_setup() context before dedup");
    if (v.path.starts_with("/dev/infiniband/") || v.path.starts_with("/dev/vfio/"))
      throw Error(Code::unsupported, "a device reads and writes its memory", object);
  }
  if (field_of(read_proc_file(proc_path(pid, "status"), pid), "VmLck") != 0) {
    add_locked(pid, out);
    notes.push_back(object + ": mlocked memory stays resident");
  }
  struct Closer {
    void operator()(DIR* d) const { closedir(d); }
  };
  std::unique_ptr<DIR, Closer> dir(opendir(proc_path(pid, "fd").c_str()));
  if (!dir) return out;
  while (dirent* entry = readdir(dir.get())) {
    if (entry->d_name[0] == '.') continue;
    char target[256];
    const std::string link = proc_path(pid, std::string("fd/") + entry->d_name);
    const ssize_t n = readlink(link.c_str(), target, sizeof target);
    if (n <= 0) continue;
    const std::string_view name(target, static_cast<size_t>(n));
    if (name.starts_with("/dev/infiniband/uverbs") || name.starts_with("/dev/vfio/"))
      throw Error(Code::unsupported, "a device reads and writes its memory", object);
    if (name != "anon_inode:[io_uring]") continue;
    add_registered_buffers(read_proc_file(proc_path(pid, std::string("fdinfo/") + entry->d_name), pid), out);
    notes.push_back(object + ": buffers registered with io_uring stay resident");
  }
  return out;
}

}  // namespace medes
