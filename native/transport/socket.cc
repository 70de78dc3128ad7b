#include "transport/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

namespace medes {

namespace {

constexpr int kUserTimeoutMs = 10'000;  // unacknowledged data this old ends a connection

struct AddressList {
  addrinfo* first = nullptr;
  ~AddressList() {
    if (first) freeaddrinfo(first);
  }
};

void resolve(const std::string& host, const std::string& port, bool passive, AddressList& out) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  const int failed = getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &out.first);
  if (failed)
    throw Error(passive ? Code::invalid_argument : Code::peer_unreachable,
                std::string("cannot resolve address: ") + gai_strerror(failed), host + ":" + port);
}

std::string format_address(const sockaddr* address, socklen_t length) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (getnameinfo(address, length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
    return "unknown";
  std::string out = host;
  if (address->sa_family == AF_INET6) out = std::string("[").append(out).append("]");
  return out.append(":").append(port);
}

int remaining_ms(Deadline deadline) {
  if (deadline == Deadline::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX));
}

class PlainStream final : public Stream {
 public:
  explicit PlainStream(FileDescriptor fd) : Stream(std::move(fd)) {}
  const char* transport_name() const override { return "tcp"; }

  IoResult read(std::span<iovec> into) override {
    msghdr message{};
    message.msg_iov = into.data();
    message.msg_iovlen = into.size();
    ssize_t n = 0;
    do {
      n = recvmsg(fd(), &message, 0);
    } while (n < 0 && errno == EINTR);
    if (n > 0) return {IoStatus::progress, static_cast<size_t>(n)};
    if (n == 0) return {IoStatus::closed, 0};
    return {errno == EAGAIN || errno == EWOULDBLOCK ? IoStatus::want_read : IoStatus::failed, 0};
  }

  IoResult write(std::span<const iovec> from) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(from.data());  // sendmsg does not write through it
    message.msg_iovlen = from.size();
    ssize_t n = 0;
    do {
      n = sendmsg(fd(), &message, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n >= 0) return {IoStatus::progress, static_cast<size_t>(n)};
    return {errno == EAGAIN || errno == EWOULDBLOCK ? IoStatus::want_write : IoStatus::failed, 0};
  }
};

}  // namespace

void FileDescriptor::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

HostPort parse_address(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon + 1 == address.size())
    throw Error(Code::invalid_argument, "an address is host:port", address);
  HostPort out{address.substr(0, colon), address.substr(colon + 1)};
  if (out.host.size() >= 2 && out.host.front() == '[' && out.host.back() == ']')
    out.host = out.host.substr(1, out.host.size() - 2);
  return out;
}

// BBR paces by a model of the path. Between nodes of one cluster a round trip takes microseconds and page
// reads come in bursts: its model settles at half of what the link carries, at twice the CPU time for the
// timers (docs/transport.md). Any other algorithm the system has chosen, DCTCP for instance, is left alone.
void avoid_pacing(int fd) {
  char name[16] = {};
  socklen_t length = sizeof name;
  if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length) || std::strncmp(name, "bbr", 3) != 0) return;
  for (const char* other : {"cubic", "reno"})
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, other, static_cast<socklen_t>(std::strlen(other))) == 0)
      return;
}

void set_stream_options(int fd) {
  const int on = 1;
  // Best effort: a socket without them still works.
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs, sizeof kUserTimeoutMs);
  avoid_pacing(fd);
}

FileDescriptor listen_on(const std::string& host, int port) {
  if (port < 0 || port > 65535) throw Error(Code::invalid_argument, "port", std::to_string(port));
  AddressList addresses;
  resolve(host, std::to_string(port), true, addresses);
  int err = 0;
  for (addrinfo* a = addresses.first; a; a = a->ai_next) {
    FileDescriptor fd(socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    const int on = 1;
    if (fd.get() >= 0) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd.get() >= 0 && bind(fd.get(), a->ai_addr, a->ai_addrlen) == 0 && listen(fd.get(), 512) == 0)
      return fd;
    err = errno;
  }
  throw errno_error(err, "page server cannot listen", host + ":" + std::to_string(port));
}

std::string local_address(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length))
    throw errno_error(errno, "getsockname");
  return format_address(reinterpret_cast<sockaddr*>(&address), length);
}

std::string peer_address(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length)) return "unknown";
  return format_address(reinterpret_cast<sockaddr*>(&address), length);
}

FileDescriptor connect_to(const std::string& address, Deadline deadline) {
  const HostPort target = parse_address(address);
  AddressList addresses;
  resolve(target.host, target.port, false, addresses);
  int err = ETIMEDOUT;
  for (addrinfo* a = addresses.first; a; a = a->ai_next) {
    FileDescriptor fd(socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol));
    if (fd.get() < 0) {
      err = errno;
      continue;
    }
    if (connect(fd.get(), a->ai_addr, a->ai_addrlen) && errno != EINPROGRESS) {
      err = errno;
      continue;
    }
    if (!wait_ready(fd.get(), IoStatus::want_write, deadline)) {
      err = ETIMEDOUT;
      continue;
    }
    socklen_t length = sizeof err;
    if (getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &err, &length)) err = errno;
    if (err == 0) {
      set_stream_options(fd.get());
      return fd;
    }
  }
  Error cause = errno_error(err, "cannot connect", address);
  throw Error(Code::peer_unreachable, cause.what(), address,
              "is the agent there running, and the port open?");
}

void Stream::shut_down() { shutdown(fd_.get(), SHUT_RDWR); }
void Stream::stop_reading() { shutdown(fd_.get(), SHUT_RD); }

std::unique_ptr<Stream> plain_stream(FileDescriptor fd) {
  return std::make_unique<PlainStream>(std::move(fd));
}

bool wait_ready(int fd, IoStatus status, Deadline deadline) {
  pollfd entry{fd, static_cast<short>(status == IoStatus::want_write ? POLLOUT : POLLIN), 0};
  for (;;) {
    const int n = poll(&entry, 1, remaining_ms(deadline));
    if (n > 0) return true;
    if (n == 0 && Clock::now() >= deadline) return false;
    if (n < 0 && errno != EINTR) return false;
  }
}

bool read_all(Stream& stream, std::byte* into, size_t n, Deadline deadline) {
  while (n > 0) {
    iovec part{into, n};
    const IoResult result = stream.read({&part, 1});
    if (result.status == IoStatus::progress) {
      into += result.bytes;
      n -= result.bytes;
    } else if (result.status == IoStatus::closed || result.status == IoStatus::failed ||
               !wait_ready(stream.fd(), result.status, deadline)) {
      return false;
    }
  }
  return true;
}

bool write_all(Stream& stream, std::span<iovec> from, Deadline deadline) {
  size_t first = 0;
  while (first < from.size()) {
    const IoResult result = stream.write(from.subspan(first, std::min<size_t>(from.size() - first, IOV_MAX)));
    if (result.status == IoStatus::progress) {
      size_t done = result.bytes;
      while (first < from.size() && done >= from[first].iov_len) done -= from[first++].iov_len;
      if (done > 0) {
        from[first].iov_base = static_cast<char*>(from[first].iov_base) + done;
        from[first].iov_len -= done;
      }
    } else if (result.status == IoStatus::closed || result.status == IoStatus::failed ||
               !wait_ready(stream.fd(), result.status, deadline)) {
      return false;
    }
  }
  return true;
}

}  // namespace medes
