#include "transport/tcp/page_server.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "common/checksum.h"
#include "common/rights.h"

namespace medes {

namespace {

using namespace std::chrono_literals;

constexpr auto kHelloTimeout = 10s;  // for TLS handshake and hello together
constexpr auto kFrameTimeout = 30s;  // to send the rest of a request, or to take a reply
// How long requests that keep coming are answered after the end of their token; a pause between them ends it.
constexpr auto kEndGrace = 5s;

// Received bytes that are not consumed yet. Grows only to what a checked header announces.
class Input {
 public:
  explicit Input(Stream& stream) : stream_(stream), buffer_(16 * 1024) {}

  // The next n bytes, valid until the next call; empty at end of stream, failure or deadline.
  Bytes next(size_t n, Deadline deadline) {
    if (begin_ == end_) begin_ = end_ = 0;
    if (buffer_.size() - begin_ < n) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
      if (buffer_.size() < n) buffer_.resize(n);
    }
    while (end_ - begin_ < n) {
      iovec part{buffer_.data() + end_, buffer_.size() - end_};
      const IoResult result = stream_.read({&part, 1});
      if (result.status == IoStatus::progress)
        end_ += result.bytes;
      else if (result.status == IoStatus::closed || result.status == IoStatus::failed ||
               !wait_ready(stream_.fd(), result.status, deadline))
        return {};
    }
    const Bytes out(buffer_.data() + begin_, n);
    begin_ += n;
    return out;
  }

 private:
  Stream& stream_;
  std::vector<std::byte> buffer_;
  size_t begin_ = 0, end_ = 0;
};

uint64_t thread_cpu_us(clockid_t clock) {
  timespec t{};
  if (clock_gettime(clock, &t)) return 0;
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000 + static_cast<uint64_t>(t.tv_nsec) / 1000;
}

// A reply being put together: the table, the memory that follows it, and what keeps that memory mapped.
struct Reply {
  std::vector<wire::ReplyEntry> entries;
  std::vector<iovec> parts;  // [0] is the table
  std::vector<std::shared_ptr<Slab>> slabs;
  uint64_t bytes = 0, failed = 0;

  void add(const wire::ReadDescriptor& read, const std::string& domain, const SlabDirectory& directory) {
    if (slabs.empty() || slabs.back()->base_id() != read.base_id) {
      auto slab = directory.find(read.base_id, domain);
      if (!slab) return fail(Code::not_found);
      slabs.push_back(std::move(slab));
    }
    const Slab& slab = *slabs.back();
    const Bytes all = slab.bytes();
    if (read.offset > all.size() || read.length > all.size() - read.offset)
      return fail(Code::invalid_argument);
    const Bytes data = all.subspan(read.offset, read.length);
    const uint64_t digest = wire::digested_by_pages(read.offset, read.length)
                                ? wire::digest_of_pages(slab.page_checksums().subspan(
                                      read.offset / kPageBytes, read.length / kPageBytes))
                                : checksum64(data);
    entries.push_back({static_cast<uint16_t>(Code::ok), 0, read.length, digest});
    bytes += read.length;
    auto* begin = const_cast<std::byte*>(data.data());  // an iovec for sending is only read
    if (parts.size() > 1) {
      iovec& last = parts.back();
      if (static_cast<std::byte*>(last.iov_base) + last.iov_len == begin) {
        last.iov_len += data.size();
        return;
      }
    }
    parts.push_back({begin, data.size()});
  }
  void fail(Code code) {
    entries.push_back({static_cast<uint16_t>(code), 0, 0, 0});
    ++failed;
  }
};

}  // namespace

struct PageServer::Impl {
  struct Connection {
    FileDescriptor accepted;
    std::mutex mutex;                // guards the members below
    std::unique_ptr<Stream> stream;  // null before the handshake and after the end
    std::shared_ptr<Grant> grant;
    std::atomic<bool> done{false};
    std::thread thread;
  };

  FileDescriptor listener, wake;
  std::string address;
  std::shared_ptr<TlsIdentity> identity;
  SlabDirectory slabs;
  std::atomic<bool> stopping{false};
  std::mutex connections_mutex;
  std::list<std::unique_ptr<Connection>> connections;
  std::thread acceptor;
  std::atomic<uint64_t> total{0}, refused{0}, refused_certificates{0}, refused_tokens{0}, refused_nodes{0};
  std::atomic<uint64_t> ended_tokens{0}, malformed{0}, batches{0}, reads{0}, bytes{0}, failed_reads{0},
      ended_cpu_us{0};

  void signal() {
    const uint64_t one = 1;
    // Can only fail when the counter is full, and then the acceptor is awake anyway.
    (void)!::write(wake.get(), &one, sizeof one);
  }
  void accept_loop();
  void accept_one();
  void reap();
  void run(Connection& connection) noexcept;
  void serve(Connection& connection);
  std::shared_ptr<Grant> greet(Stream& stream, Input& input, Deadline deadline);
  bool serve_batch(Stream& stream, Input& input, const Grant& grant);
  bool send_error(Stream& stream, uint64_t request_id, Code code);
};

PageServer::PageServer(const std::string& host, int port, std::shared_ptr<TlsIdentity> identity)
    : impl_(std::make_unique<Impl>()) {
  impl_->identity = std::move(identity);
  impl_->listener = listen_on(host, port);
  impl_->address = local_address(impl_->listener.get());
  impl_->wake = FileDescriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (impl_->wake.get() < 0) throw errno_error(errno, "eventfd");
  impl_->acceptor = std::thread([this] { impl_->accept_loop(); });
}

PageServer::~PageServer() { close(); }

void PageServer::close() {
  Impl& impl = *impl_;
  if (impl.stopping.exchange(true)) return;
  impl.signal();
  impl.acceptor.join();
  impl.listener.reset();
  std::list<std::unique_ptr<Impl::Connection>> ending;
  {
    std::lock_guard lock(impl.connections_mutex);
    ending.swap(impl.connections);
  }
  for (auto& connection : ending) {
    std::lock_guard lock(connection->mutex);
    if (connection->stream) connection->stream->shut_down();
    if (connection->accepted.get() >= 0) shutdown(connection->accepted.get(), SHUT_RDWR);
  }
  for (auto& connection : ending) connection->thread.join();
}

std::string PageServer::address() const { return impl_->address; }
SlabDirectory& PageServer::slabs() { return impl_->slabs; }

void PageServer::revoke(const Token& token) {
  const auto grant = impl_->slabs.revoke(token);
  if (!grant) return;
  std::lock_guard lock(impl_->connections_mutex);
  for (auto& connection : impl_->connections) {
    std::lock_guard connection_lock(connection->mutex);
    if (connection->grant == grant && connection->stream) connection->stream->shut_down();
  }
}

void PageServer::end_connections() {
  std::lock_guard lock(impl_->connections_mutex);
  for (auto& connection : impl_->connections) {
    std::lock_guard connection_lock(connection->mutex);
    if (connection->stream) connection->stream->stop_reading();
  }
}

PageServerStats PageServer::stats() const {
  Impl& impl = *impl_;
  PageServerStats out;
  out.connections_total = impl.total;
  out.refused = impl.refused;
  out.refused_certificates = impl.refused_certificates;
  out.refused_tokens = impl.refused_tokens;
  out.refused_nodes = impl.refused_nodes;
  out.ended_tokens = impl.ended_tokens;
  out.malformed = impl.malformed;
  out.batches = impl.batches;
  out.reads = impl.reads;
  out.bytes = impl.bytes;
  out.failed_reads = impl.failed_reads;
  out.cpu_us = impl.ended_cpu_us;
  std::lock_guard lock(impl.connections_mutex);
  for (auto& connection : impl.connections) {
    if (connection->done) continue;
    ++out.connections_open;
    clockid_t clock;
    if (pthread_getcpuclockid(connection->thread.native_handle(), &clock) == 0)
      out.cpu_us += thread_cpu_us(clock);
  }
  return out;
}

void PageServer::Impl::accept_loop() {
  drop_thread_capabilities();  // and those of the connections' threads, which begin here
  while (!stopping) {
    pollfd entries[2] = {{listener.get(), POLLIN, 0}, {wake.get(), POLLIN, 0}};
    if (poll(entries, 2, -1) < 0 && errno != EINTR) return;
    uint64_t count = 0;
    if (entries[1].revents) (void)!::read(wake.get(), &count, sizeof count);
    reap();
    if (!stopping && entries[0].revents) accept_one();
  }
}

void PageServer::Impl::accept_one() {
  FileDescriptor fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.get() < 0) {
    // Out of descriptors or memory: what waits in the backlog stays readable, so do not spin on it.
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
      std::this_thread::sleep_for(50ms);
    return;
  }
  set_stream_options(fd.get());
  ++total;
  std::lock_guard lock(connections_mutex);
  if (connections.size() >= kMaxConnectionsPerServer) {
    ++refused;
    return;
  }
  auto connection = std::make_unique<Connection>();
  connection->accepted = std::move(fd);
  Connection* raw = connection.get();
  try {
    connection->thread = std::thread([this, raw] { run(*raw); });
  } catch (const std::system_error&) {
    ++refused;  // no more threads
    return;
  }
  connections.push_back(std::move(connection));
}

void PageServer::Impl::reap() {
  std::list<std::unique_ptr<Connection>> ended;
  {
    std::lock_guard lock(connections_mutex);
    for (auto it = connections.begin(); it != connections.end();) {
      auto next = std::next(it);
      if ((*it)->done) ended.splice(ended.end(), connections, it);
      it = next;
    }
  }
  for (auto& connection : ended) connection->thread.join();
}

void PageServer::Impl::run(Connection& connection) noexcept {
  try {
    serve(connection);
  } catch (const Error& e) {
    if (e.code == Code::unauthenticated) {
      ++refused;
      ++refused_certificates;
    }
  } catch (const std::exception&) {
    // Out of memory for one request: this connection ends, the others go on.
  }
  ended_cpu_us += thread_cpu_us(CLOCK_THREAD_CPUTIME_ID);
  {
    std::lock_guard lock(connection.mutex);
    connection.stream.reset();
    connection.accepted.reset();
  }
  connection.done = true;
  signal();
}

void PageServer::Impl::serve(Connection& connection) {
  const Deadline deadline = Clock::now() + kHelloTimeout;
  const int descriptor = connection.accepted.get();
  FileDescriptor own(dup(descriptor));
  if (own.get() < 0) return;
  // The handshake runs on a duplicate, so that close() can end it through `accepted` meanwhile.
  auto made = identity ? identity->server()->handshake(std::move(own), peer_address(descriptor), deadline)
                       : plain_stream(std::move(own));
  Stream& stream = *made;
  {
    std::lock_guard lock(connection.mutex);
    connection.stream = std::move(made);
  }
  Input input(stream);
  auto grant = greet(stream, input, deadline);
  if (!grant) return;
  {
    std::lock_guard lock(connection.mutex);
    connection.grant = grant;
  }
  while (!stopping && !grant->revoked && Clock::now() - kEndGrace < grant->ends.load() &&
         serve_batch(stream, input, *grant)) {
  }
  if (grant->ended()) ++ended_tokens;
}

std::shared_ptr<Grant> PageServer::Impl::greet(Stream& stream, Input& input, Deadline deadline) {
  const Bytes data = input.next(sizeof(wire::Hello), deadline);
  if (data.empty()) return nullptr;
  Code status = Code::ok;
  std::shared_ptr<Grant> grant;
  try {
    grant = slabs.authenticate(wire::parse_hello(data).token);
    if (!grant) {
      ++refused_tokens;
      status = Code::unauthenticated;
    } else if (identity && stream.peer_node() != grant->peer) {
      // A token is worth nothing to anybody else: it was overheard, or handed on.
      ++refused_nodes;
      grant = nullptr;
      status = Code::unauthenticated;
    }
  } catch (const Error& e) {
    status = e.code;
  }
  if (status == Code::unauthenticated)
    ++refused;
  else if (status != Code::ok)
    ++malformed;
  wire::HelloReply reply = wire::make_hello_reply(status);
  iovec part{&reply, sizeof reply};
  return write_all(stream, {&part, 1}, deadline) ? grant : nullptr;
}

bool PageServer::Impl::send_error(Stream& stream, uint64_t request_id, Code code) {
  ++malformed;
  wire::ReplyHeader reply = wire::make_error_reply(request_id, code);
  iovec part{&reply, sizeof reply};
  write_all(stream, {&part, 1}, Clock::now() + 1s);
  return false;
}

// One request and its reply. False when the connection is to end.
bool PageServer::Impl::serve_batch(Stream& stream, Input& input, const Grant& grant) {
  const Bytes head = input.next(sizeof(wire::RequestHeader), grant.ends);
  if (head.empty()) return false;
  wire::RequestHeader header{};
  std::vector<wire::ReadDescriptor> asked;
  try {
    header = wire::parse_request_header(head);
    const Bytes body = input.next(header.count * sizeof(wire::ReadDescriptor), Clock::now() + kFrameTimeout);
    if (body.empty()) return false;
    asked = wire::parse_request_body(header, body);
  } catch (const Error& e) {
    return send_error(stream, header.request_id, e.code);
  }
  if (grant.revoked) return send_error(stream, header.request_id, Code::unauthenticated);
  Reply reply;
  reply.entries.reserve(asked.size());
  reply.parts.reserve(asked.size() + 1);
  reply.parts.push_back({});
  for (const auto& read : asked) reply.add(read, grant.domain, slabs);
  std::vector<std::byte> table = wire::make_reply(header.request_id, reply.entries);
  reply.parts[0] = {table.data(), table.size()};
  ++batches;
  reads += asked.size();
  bytes += reply.bytes;
  failed_reads += reply.failed;
  return write_all(stream, reply.parts, Clock::now() + kFrameTimeout);
}

}  // namespace medes
