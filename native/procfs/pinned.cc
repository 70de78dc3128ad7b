// Memory of a process that the kernel or a device holds on to: it cannot be evicted without breaking its
// user, because the pin keeps the old page while the process would fault in a new one.
#include <dirent.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "common/error.h"
#include "procfs/proc.h"

namespace medes {
namespace {

constexpr uint64_t kMaxArgumentBytes = 16u << 20;
constexpr std::string_view kRing = "anon_inode:[io_uring]";

// Devices that read and write a program's memory by themselves, not all of them by pins that a kernel tells
// of.
constexpr std::array<std::string_view, 10> kDeviceMemory = {
    "/dev/infiniband/", "/dev/vfio/", "/dev/nvidia",     "/dev/kfd",  "/dev/dri/",
    "/dev/accel/",      "/dev/iommu", "/dev/vhost-vdpa", "/dev/xen/", "anon_inode:[vfio-device]"};
// Files below /dev that hold on to nobody's memory.
constexpr std::array<std::string_view, 18> kHarmless = {
    "/dev/null", "/dev/zero", "/dev/full",    "/dev/random", "/dev/urandom", "/dev/tty",
    "/dev/pts/", "/dev/ptmx", "/dev/console", "/dev/shm/",   "/dev/mqueue/", "/dev/hugepages/",
    "/dev/fuse", "/dev/kmsg", "/dev/log",     "/dev/kvm",    "/dev/net/tun", "/dev/userfaultfd"};

// Sockets that hold on to memory which was registered with them, rings mapped or not (AF_XDP's umem; RDS over
// RDMA). They do so by the name of their protocol, and count it as their user's, not as the process's.
constexpr std::array<std::string_view, 2> kPinningProtocols = {"XDP", "RDS"};

bool pins_by_protocol(const std::string& link) {
  char name[32];
  const ssize_t n = getxattr(link.c_str(), "system.sockprotoname", name, sizeof name);
  return n > 1 && std::find(kPinningProtocols.begin(), kPinningProtocols.end(),
                            std::string_view(name, static_cast<size_t>(n) - 1)) != kPinningProtocols.end();
}

bool is_of(std::string_view name, std::span<const std::string_view> list) {
  return std::any_of(list.begin(), list.end(), [&](std::string_view s) { return name.starts_with(s); });
}

std::string proc_path(pid_t pid, const std::string& name) {
  return "/proc/" + std::to_string(pid) + "/" + name;
}

// What `name`, of an open file or a mapping, says about who holds memory. Throws unsupported.
void look_at_name(pid_t pid, std::string_view name, std::string& may_pin) {
  if (is_of(name, kDeviceMemory))
    throw Error(Code::unsupported, "a device may read and write its memory (" + std::string(name) + ")",
                "pid " + std::to_string(pid), "close the device before dedup");
  // Rings of packet sockets are mapped; those of AF_XDP belong to pinned memory.
  if (name == kRing || name.starts_with("socket:["))
    may_pin = name == kRing ? "io_uring" : "a mapped socket";
  else if (name.starts_with("/dev/") && !is_of(name, kHarmless) && may_pin.empty())
    may_pin = name;
}

void look_at_descriptors(pid_t pid, Pinned& out, std::vector<std::string>& notes) {
  struct Closer {
    void operator()(DIR* d) const { closedir(d); }
  };
  std::unique_ptr<DIR, Closer> dir(opendir(proc_path(pid, "fd").c_str()));
  if (!dir) return;
  while (dirent* entry = readdir(dir.get())) {
    if (entry->d_name[0] == '.') continue;
    char target[256];
    const std::string link = proc_path(pid, std::string("fd/") + entry->d_name);
    const ssize_t n = readlink(link.c_str(), target, sizeof target);
    if (n <= 0) continue;
    const std::string_view name(target, static_cast<size_t>(n));
    if (name.starts_with("socket:[")) {  // others pin nothing without a mapping
      if (out.may_pin.empty() && pins_by_protocol(link)) out.may_pin = "a socket's registered memory";
      continue;
    }
    look_at_name(pid, name, out.may_pin);
    if (name != kRing) continue;
    append_registered_buffers(read_proc_file(proc_path(pid, std::string("fdinfo/") + entry->d_name), pid),
                              out.ranges);
    notes.push_back("pid " + std::to_string(pid) + ": buffers registered with io_uring stay resident");
  }
}

// What others read through the process's memory (/proc/PID/cmdline and environ) gets zeros, without waiting,
// where it is missing.
void add_arguments(pid_t pid, std::vector<AddressRange>& out) {
  for (const AddressRange& r : argument_ranges(pid))
    if (r.begin < r.end && r.end - r.begin <= kMaxArgumentBytes) out.push_back(r);
}

}  // namespace

Pinned find_pinned(pid_t pid, std::span<const Vma> vmas, std::vector<std::string>& notes) {
  const std::string object = "pid " + std::to_string(pid);
  Pinned out;
  for (const auto& v : vmas) {
    if (v.path.starts_with("/[aio]"))
      throw Error(Code::unsupported, "asynchronous I/O may be in flight into its memory", object,
                  "close the io_setup() context before dedup");
    if (!v.path.empty() && v.kind != VmaKind::memfd) look_at_name(pid, v.path, out.may_pin);
  }
  const std::string status = read_proc_file(proc_path(pid, "status"), pid);
  if (field_of(status, "VmLck") != 0) {
    for (const auto& r : ranges_with_flag(pid, "lo")) out.ranges.push_back(r);
    notes.push_back(object + ": mlocked memory stays resident");
  }
  add_arguments(pid, out.ranges);
  look_at_descriptors(pid, out, notes);
  if (out.may_pin.empty() && field_of(status, "VmPin") != 0) out.may_pin = "a pin (VmPin)";
  return out;
}

}  // namespace medes
