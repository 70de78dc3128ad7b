// Sockets as the page transport uses them: numeric or named "host:port" addresses, non-blocking
// connections, and a byte stream that is either plain TCP or TLS.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "common/error.h"

namespace medes {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { reset(); }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = other.release();
    }
    return *this;
  }
  int get() const { return fd_; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }
  void reset();

 private:
  int fd_ = -1;
};

struct HostPort {
  std::string host, port;
};
HostPort parse_address(const std::string& address);  // "h:p" or "[v6]:p"; throws invalid_argument

FileDescriptor listen_on(const std::string& host, int port);  // throws invalid_argument, io
std::string local_address(int fd);                            // "host:port" as bound
std::string peer_address(int fd);
// A connected, non-blocking socket with TCP_NODELAY and keep-alive; throws peer_unreachable.
FileDescriptor connect_to(const std::string& address, Deadline deadline);
void set_stream_options(int fd);

enum class IoStatus { progress, want_read, want_write, closed, failed };

struct IoResult {
  IoStatus status = IoStatus::failed;
  size_t bytes = 0;
};

// A non-blocking byte stream. Not thread-safe.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual IoResult read(std::span<iovec> into) = 0;
  virtual IoResult write(std::span<const iovec> from) = 0;
  virtual bool buffers() const { return false; }   // it reads ahead of its caller
  virtual bool buffered() const { return false; }  // bytes are waiting that poll() does not see
  // The other side said that it does not want us, or is not who it should be; else it went without a word.
  virtual bool refused() const { return false; }
  // The node whose certificate the other side has shown; empty where it is none of a node, or on plain TCP.
  virtual std::string peer_node() const { return {}; }
  virtual bool spent() const { return false; }  // it should be replaced by a new connection when it is idle
  virtual const char* transport_name() const = 0;
  int fd() const { return fd_.get(); }
  void shut_down();     // both directions, from any thread; calls under way return closed
  void stop_reading();  // from any thread; reads give what has come, then closed

 protected:
  explicit Stream(FileDescriptor fd) : fd_(std::move(fd)) {}
  FileDescriptor fd_;
};

std::unique_ptr<Stream> plain_stream(FileDescriptor fd);

// Waits until `fd` is ready for what `status` wants. False at the deadline.
bool wait_ready(int fd, IoStatus status, Deadline deadline);
// Whole-buffer forms for threads that have nothing else to do. False when closed, failed or late.
bool read_all(Stream& stream, std::byte* into, size_t n, Deadline deadline);
bool write_all(Stream& stream, std::span<iovec> from, Deadline deadline);  // consumes the iovecs

}  // namespace medes
