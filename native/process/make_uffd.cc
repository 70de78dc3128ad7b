#include "process/make_uffd.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/error.h"
#include "common/unique_fd.h"
#include "procfs/proc.h"
#include "serving/uffd.h"

namespace medes {
namespace {

constexpr uint64_t kFlags = O_CLOEXEC | O_NONBLOCK;
constexpr unsigned long kIoctlNew = _IO(0xAA, 0x00);  // USERFAULTFD_IOC_NEW, Linux 6.1

constexpr int kFirstFree = 3;  // those before it are never ours
constexpr uint64_t kHighest = 1024;
constexpr uint64_t kBelowTop = 24;

// Where the pieces of the message lie in the injector's scratch memory.
constexpr size_t kPairAt = 0, kHeaderAt = 64, kIovecAt = 192, kByteAt = 256, kControlAt = 320;

std::string object_of(pid_t pid) { return "pid " + std::to_string(pid); }

long checked(long result, const char* what, pid_t pid) {
  if (result == -EMFILE)
    throw Error(Code::limit_exceeded, "it has no descriptor left for its userfaultfd (RLIMIT_NOFILE)",
                object_of(pid), "raise its limit of open files by a few");
  if (result == -ENFILE)
    throw Error(Code::limit_exceeded, "the system has no open file left (sysctl fs.file-max)",
                object_of(pid));
  if (result < 0) throw errno_error(static_cast<int>(-result), what, object_of(pid));
  return result;
}

// Descriptors of the process that are only needed on the way; closed there again.
class RemoteFds {
 public:
  explicit RemoteFds(Injector& injector) : injector_(injector) {}
  ~RemoteFds() {
    try {
      for (int fd : fds_) {
        const uint64_t arguments[] = {static_cast<uint64_t>(fd)};
        (void)injector_.call(SYS_close, arguments);
      }
    } catch (const Error&) {  // the process is gone, and its descriptors with it
    }
  }
  RemoteFds(const RemoteFds&) = delete;
  RemoteFds& operator=(const RemoteFds&) = delete;
  int add(int fd) {
    fds_.push_back(fd);
    return fd;
  }

 private:
  Injector& injector_;
  std::vector<int> fds_;
};

void send_descriptor(int socket, int fd, pid_t pid) {
  char byte = 0;
  iovec io{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &io, message.msg_iovlen = 1;
  message.msg_control = control, message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  if (sendmsg(socket, &message, MSG_NOSIGNAL) != 1)
    throw errno_error(errno, "cannot hand over /dev/userfaultfd", object_of(pid));
}

int receive_descriptor(Injector& injector, int socket, pid_t pid) {
  const uint64_t base = injector.scratch();
  iovec io{reinterpret_cast<void*>(base + kByteAt), 1};
  msghdr message{};
  message.msg_iov = reinterpret_cast<iovec*>(base + kIovecAt), message.msg_iovlen = 1;
  message.msg_control = reinterpret_cast<void*>(base + kControlAt), message.msg_controllen = 64;
  injector.write_scratch(kIovecAt, &io, sizeof io);
  injector.write_scratch(kHeaderAt, &message, sizeof message);
  const uint64_t arguments[] = {static_cast<uint64_t>(socket), base + kHeaderAt,
                                MSG_CMSG_CLOEXEC | MSG_DONTWAIT};
  checked(injector.call(SYS_recvmsg, arguments), "the sandbox could not receive a descriptor", pid);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  injector.read_scratch(kControlAt, control, sizeof control);
  cmsghdr header;
  std::memcpy(&header, control, sizeof header);
  int fd = -1;
  if (header.cmsg_type == SCM_RIGHTS && header.cmsg_len >= CMSG_LEN(sizeof fd))
    std::memcpy(&fd, control + CMSG_LEN(0), sizeof fd);
  if (fd < 0) throw Error(Code::io, "the sandbox received no descriptor", object_of(pid));
  return fd;
}

int make_by_device(Injector& injector, pid_t pid) {
  const UniqueFd device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device)
    throw Error(Code::permission_denied, "userfaultfd is refused inside the sandbox", object_of(pid),
                "give the agent /dev/userfaultfd (Linux 6.1), or set sysctl vm.unprivileged_userfaultfd=1");
  RemoteFds fds(injector);
  const uint64_t pair_arguments[] = {AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, injector.scratch() + kPairAt};
  checked(injector.call(SYS_socketpair, pair_arguments), "the sandbox could not make a socket", pid);
  int pair[2] = {-1, -1};
  injector.read_scratch(kPairAt, pair, sizeof pair);
  fds.add(pair[0]), fds.add(pair[1]);
  const UniqueFd ours = take_descriptor(pid, pair[1]);
  send_descriptor(ours.get(), device.get(), pid);
  const int theirs = fds.add(receive_descriptor(injector, pair[0], pid));
  const uint64_t arguments[] = {static_cast<uint64_t>(theirs), kIoctlNew, kFlags};
  return static_cast<int>(
      checked(injector.call(SYS_ioctl, arguments), "userfaultfd is refused inside the sandbox", pid));
}

int make_anywhere(Injector& injector, pid_t pid) {
  const uint64_t flags[] = {kFlags};
  const long made = injector.call(SYS_userfaultfd, flags);
  if (made >= 0) return static_cast<int>(made);
  if (made != -EPERM && made != -EACCES) checked(made, "userfaultfd does not work inside the sandbox", pid);
  return make_by_device(injector, pid);
}

uint64_t descriptors_most(Injector& injector) {
  const uint64_t arguments[] = {0, RLIMIT_NOFILE, 0, injector.scratch()};
  rlimit64 limit{};
  if (injector.call(SYS_prlimit64, arguments) < 0) return 0;
  injector.read_scratch(0, &limit, sizeof limit);
  return limit.rlim_cur;
}

// As large as the kernel has made its table of descriptors up to now.
uint64_t table_entries(pid_t pid) {
  return field_of(read_proc_file("/proc/" + std::to_string(pid) + "/status", pid), "FDSize");
}

}  // namespace

// The program expects the lowest free number for what it opens next, and one that has closed 0 to 2 expects
// nothing behind them: so ours lies where programs seldom come, near the end of its table. The table must not
// grow for it: where threads share it the kernel waits for all processors then, some 15 ms.
int make_userfaultfd(Injector& injector, pid_t pid) {
  const int low = make_anywhere(injector, pid);
  const uint64_t most = std::min({descriptors_most(injector), table_entries(pid), kHighest});
  const uint64_t wanted = most - std::min(kBelowTop, most / 8);
  const uint64_t copy[] = {static_cast<uint64_t>(low), F_DUPFD_CLOEXEC,
                           std::max<uint64_t>(wanted, kFirstFree)};
  const long high = injector.call(SYS_fcntl, copy);
  if (high < 0 && low >= kFirstFree) return low;  // all above are taken
  const uint64_t close[] = {static_cast<uint64_t>(low)};
  (void)injector.call(SYS_close, close);
  return static_cast<int>(checked(high == -EINVAL ? -EMFILE : high, "its userfaultfd cannot be moved", pid));
}

}  // namespace medes
