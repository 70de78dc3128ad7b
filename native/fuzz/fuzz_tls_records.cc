// Bytes of anybody's on a connection whose keys they do not have: nothing of them is ever delivered.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "transport/tls_records.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  int wire[2];
  if (size > 100'000 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, wire)) return 0;
  const FileDescriptor other(wire[1]);
  TrafficSecrets secrets;
  secrets.read.fill(7);
  const auto stream = tls_record_stream(FileDescriptor(wire[0]), secrets, "");
  const ssize_t sent = write(other.get(), data, size);
  if (sent != static_cast<ssize_t>(size)) return 0;
  shutdown(other.get(), SHUT_WR);
  std::byte into[64];
  iovec part{into, sizeof into};
  const IoResult result = stream->read({&part, 1});
  if (result.status == IoStatus::progress || result.status == IoStatus::want_read) std::abort();
  return 0;
}
