#include "serving/uffd.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "common/limits.h"
#include "procfs/proc.h"

namespace medes {
namespace {

constexpr uint64_t kFeatures =
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

constexpr uint64_t kNowhere = 1u << 20;  // an address no program maps: asking about it changes nothing

UffdResult result_of(int err) {
  switch (err) {
    case EEXIST: return UffdResult::exists;
    case EAGAIN: return UffdResult::again;
    case ENOENT:
    case EINVAL: return UffdResult::unmapped;
    case ESRCH: return UffdResult::gone;
    case ENOMEM:
    case ENOSPC: return UffdResult::no_memory;
    default: return UffdResult::failed;
  }
}

}  // namespace

bool Uffd::enable() {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatures;
  if (ioctl(fd(), UFFDIO_API, &api) == 0) return true;
  const int err = errno;
  if (err == EPERM)
    throw Error(Code::permission_denied, "userfaultfd fork events are not permitted", "",
                "the agent needs CAP_SYS_PTRACE");
  if (err != EINVAL) throw errno_error(err, "userfaultfd handshake failed");
  // EINVAL says either "already enabled" (by an earlier dedup of this process) or "not supported": a
  // descriptor that was never enabled refuses every other ioctl, an enabled one wakes nobody and says ok.
  uffdio_range range{1u << 20, kPageBytes};
  if (ioctl(fd(), UFFDIO_WAKE, &range) == 0) return false;
  throw Error(Code::unsupported, "userfaultfd has no fork, remap, remove and unmap events", "",
              "Linux 4.11 or later is needed");
}

int Uffd::register_missing(uint64_t begin, uint64_t end) const {
  uffdio_register reg{};
  reg.range = {begin, end - begin};
  reg.mode = UFFDIO_REGISTER_MODE_MISSING;
  return ioctl(fd(), UFFDIO_REGISTER, &reg) == 0 ? 0 : errno;
}

int Uffd::unregister(uint64_t begin, uint64_t end) const {
  uffdio_range range{begin, end - begin};
  return ioctl(fd(), UFFDIO_UNREGISTER, &range) == 0 ? 0 : errno;
}

UffdResult Uffd::copy(uint64_t address, const std::byte* from, uint64_t count, uint64_t& done) const {
  uffdio_copy arg{};
  arg.dst = address;
  arg.src = reinterpret_cast<uint64_t>(from);
  arg.len = count * kPageBytes;
  done = 0;
  if (ioctl(fd(), UFFDIO_COPY, &arg) == 0) {
    done = count;
    return UffdResult::ok;
  }
  const int err = errno;
  if (arg.copy > 0) done = static_cast<uint64_t>(arg.copy) / kPageBytes;
  return result_of(err);
}

UffdResult Uffd::zero(uint64_t address, uint64_t count, uint64_t& done) const {
  uffdio_zeropage arg{};
  arg.range = {address, count * kPageBytes};
  done = 0;
  if (ioctl(fd(), UFFDIO_ZEROPAGE, &arg) == 0) {
    done = count;
    return UffdResult::ok;
  }
  const int err = errno;
  if (arg.zeropage > 0) done = static_cast<uint64_t>(arg.zeropage) / kPageBytes;
  return result_of(err);
}

void Uffd::wake(uint64_t address, uint64_t count) const {
  uffdio_range range{address, count * kPageBytes};
  (void)ioctl(fd(), UFFDIO_WAKE, &range);  // nobody waits, or the memory is gone: both are fine
}

size_t Uffd::read_events(std::span<uffd_msg> out) const {
  for (;;) {
    const ssize_t n = read(fd(), out.data(), out.size_bytes());
    if (n > 0) return static_cast<size_t>(n) / sizeof(uffd_msg);
    if (n < 0 && errno == EINTR) continue;
    return 0;
  }
}

std::optional<size_t> Uffd::pending_faults() {
  if (!info_)
    info_ = UniqueFd(open(("/proc/self/fdinfo/" + std::to_string(fd())).c_str(), O_RDONLY | O_CLOEXEC));
  char text[512];
  const ssize_t n = info_ ? pread(info_.get(), text, sizeof text, 0) : -1;
  if (n <= 0) return std::nullopt;
  const auto pending = pending_of({text, static_cast<size_t>(n)});
  return pending ? std::optional<size_t>(*pending) : std::nullopt;
}

bool Uffd::changing() const {
  uint64_t done = 0;
  return zero(kNowhere, 1, done) == UffdResult::again;
}

bool Uffd::memory_gone() const {
  uint64_t done = 0;
  return zero(kNowhere, 1, done) == UffdResult::gone;
}

// A copy from memory that cannot be read goes as far as finding the mapping, and no further.
UffdResult Uffd::look(uint64_t address) const {
  static const void* const unreadable =
      mmap(nullptr, kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (unreadable == MAP_FAILED) return UffdResult::failed;
  uint64_t done = 0;
  const UffdResult result = copy(address, static_cast<const std::byte*>(unreadable), 1, done);
  const bool found =
      result == UffdResult::failed || result == UffdResult::no_memory || result == UffdResult::exists;
  return found ? UffdResult::ok : result;
}

uint64_t Uffd::inode() const {
  struct stat st{};
  return fstat(fd(), &st) == 0 ? st.st_ino : 0;
}

Uffd Uffd::of_process(pid_t pid, int fd) { return Uffd(take_descriptor(pid, fd)); }

UniqueFd take_descriptor(pid_t pid, int fd) {
  const std::string object = "pid " + std::to_string(pid);
  constexpr unsigned kPidfdThread = O_EXCL;  // Linux 6.9
  const pid_t tid = live_thread(pid);
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, tid, tid == pid ? 0 : kPidfdThread)));
  if (!process) throw errno_error(errno, "cannot open a handle on the process", object);
  UniqueFd taken(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), fd, 0)));
  if (taken) return taken;
  const int err = errno;
  if (err == EBADF) throw Error(Code::not_found, "its userfaultfd is closed", object);
  throw errno_error(err, "cannot take its userfaultfd", object, "the agent needs CAP_SYS_PTRACE");
}

}  // namespace medes
