#include "transport/tcp/tcp_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "transport/tcp/tcp_connection.h"

namespace medes {

namespace {

using namespace std::chrono_literals;

constexpr auto kConnectTimeout = 3s;
constexpr auto kBackoffMin = 20ms;  // after a failed connect; doubles up to the maximum
constexpr auto kBackoffMax = 1s;
constexpr auto kTokenWait = 2s;              // for a new token, when the one in use was refused
constexpr size_t kSpreadBytes = 512 * 1024;  // batches below this use one stream

// The server takes the certificate but not the token.
struct TokenRefused : Error {
  TokenRefused(const std::string& target, uint64_t of)
      : Error(Code::unauthenticated, "page server refused the token", target,
              "ask the agent there for a new one (OpenPages)"),
        round(of) {}
  uint64_t round;  // see TcpReader::Impl
};

}  // namespace

struct TcpReader::Impl {
  // One stream's connection and when it may be tried again.
  struct Slot {
    std::mutex mutex;
    std::shared_ptr<TcpConnection> connection;
    Clock::time_point retry_at{};
    Clock::duration backoff = kBackoffMin;
    Code last_failure = Code::peer_unreachable;
    bool connected_before = false;
  };

  std::mutex target_mutex;
  std::condition_variable readdressed;
  std::string address;
  Token token{};
  uint64_t round = 0;   // grows with each readdress
  FileDescriptor wake;  // written to when a token is refused
  std::shared_ptr<TlsIdentity> identity;
  std::string server_name;
  std::vector<std::unique_ptr<Slot>> slots;
  std::atomic<size_t> turn{0};
  std::atomic<bool> closed{false};
  bool check_digests = true;
  std::atomic<uint64_t> batches{0}, reads{0}, bytes{0}, failures{0}, reconnects{0}, refused_tokens{0};

  Transport transport() const { return identity ? Transport::tcp_tls : Transport::tcp; }
  std::shared_ptr<TcpConnection> dial(const Slot& slot);
  std::shared_ptr<TcpConnection> dial_or_wait(const Slot& slot);
  std::shared_ptr<TcpConnection> connection(Slot& slot, Code& failure);
};

namespace {

struct Part {
  std::shared_ptr<TcpConnection> connection;
  std::shared_ptr<TcpRequest> request;
  size_t first = 0;  // index of its first read in the batch
};

}  // namespace

class TcpBatch : public ReadBatch {
 public:
  TcpBatch(size_t n, Transport transport, std::function<void(size_t, size_t, uint64_t)> account)
      : status_(n, Code::busy), transport_(transport), account_(std::move(account)) {}
  ~TcpBatch() override {
    for (Part& part : parts_) part.connection->abandon(*part.request);
  }
  void add(Part part) { parts_.push_back(std::move(part)); }
  void fail(size_t first, size_t count, Code code) { std::fill_n(status_.begin() + first, count, code); }

  bool wait(std::chrono::nanoseconds timeout) override {
    if (finished_) return true;
    const auto now = Clock::now();
    const Deadline deadline = timeout > 24h ? now + 24h : now + timeout;
    for (Part& part : parts_)
      if (!part.connection->wait(*part.request, deadline)) return false;
    uint64_t bytes = 0;
    for (Part& part : parts_) {
      for (size_t i = 0; i < part.request->status.size(); ++i) {
        status_[part.first + i] = part.request->status[i];
        if (part.request->status[i] == Code::ok) bytes += part.request->reads[i].length;
      }
    }
    finished_ = true;
    const size_t failed =
        status_.size() - static_cast<size_t>(std::count(status_.begin(), status_.end(), Code::ok));
    account_(status_.size(), failed, bytes);
    return true;
  }
  Code status(size_t i) const override { return status_[i]; }
  Transport carried_by(size_t) const override { return transport_; }

 private:
  std::vector<Part> parts_;
  std::vector<Code> status_;
  const Transport transport_;
  std::function<void(size_t, size_t, uint64_t)> account_;
  bool finished_ = false;
};

TcpReader::TcpReader(TcpReaderOptions options) : impl_(std::make_shared<Impl>()) {
  if (options.streams < 1 || options.streams > kMaxStreams)
    throw Error(Code::invalid_argument, "streams must be 1 to " + std::to_string(kMaxStreams));
  parse_address(options.address);
  impl_->address = options.address;
  impl_->token = options.token;
  impl_->check_digests = options.check_digests;
  if (options.wake >= 0) {
    impl_->wake = FileDescriptor(fcntl(options.wake, F_DUPFD_CLOEXEC, 0));  // readers may outlive its owner
    if (impl_->wake.get() < 0) throw errno_error(errno, "eventfd of a page reader");
  }
  impl_->identity = std::move(options.identity);
  impl_->server_name = std::move(options.server_name);
  for (size_t i = 0; i < options.streams; ++i) impl_->slots.push_back(std::make_unique<Impl::Slot>());
  if (options.connect_now) {
    impl_->slots[0]->connection = impl_->dial(*impl_->slots[0]);
    impl_->slots[0]->connected_before = true;
  }
}

TcpReader::~TcpReader() { close(); }

TransportCapabilities TcpReader::capabilities() const {
  return {impl_->transport(), false, false, kMaxReadBytes, kMaxReadsPerBatch};
}

void TcpReader::readdress(const std::string& address, std::span<const std::byte> token_bytes) {
  parse_address(address);
  const Token token = wire::token_from(token_bytes);
  {
    std::lock_guard lock(impl_->target_mutex);
    ++impl_->round;
    impl_->address = address;
    impl_->token = token;
  }
  impl_->readdressed.notify_all();
  for (auto& slot : impl_->slots) {
    // A slot that is being connected right now is left alone: its owner may wait seconds for the old address,
    // and this is called from an event loop.
    std::unique_lock lock(slot->mutex, std::try_to_lock);
    if (!lock) continue;
    slot->retry_at = {};
    slot->backoff = kBackoffMin;
  }
}

// Connects and introduces itself. Throws peer_unreachable, unauthenticated, corrupt, unsupported.
std::shared_ptr<TcpConnection> TcpReader::Impl::dial(const Slot& slot) {
  std::string target;
  wire::Hello hello;
  uint64_t of = 0;
  {
    std::lock_guard lock(target_mutex);
    target = address;
    hello = wire::make_hello(token);
    of = round;
  }
  const Deadline deadline = Clock::now() + kConnectTimeout;
  FileDescriptor fd = connect_to(target, deadline);
  const std::string name = server_name.empty() ? parse_address(target).host : server_name;
  auto stream =
      identity ? identity->client()->handshake(std::move(fd), name, deadline) : plain_stream(std::move(fd));
  iovec part{&hello, sizeof hello};
  std::byte answer[sizeof(wire::HelloReply)];
  const bool sent = write_all(*stream, {&part, 1}, deadline);
  // Under TLS 1.3 a server refuses a client's certificate only after the client's handshake has ended: what
  // it said of that is read even when it was gone before the hello was sent.
  if (!read_all(*stream, answer, sizeof answer, deadline) || !sent)
    throw Error(stream->refused() ? Code::unauthenticated : Code::peer_unreachable,
                "page server closed the connection before it was open", target);
  const auto reply = wire::parse_hello_reply(answer);
  const Code status = wire::code_from_wire(reply.status);
  if (status == Code::unauthenticated) {
    ++refused_tokens;
    throw TokenRefused(target, of);
  }
  if (status != Code::ok) throw Error(status, "page server refused the connection", target);
  // The first stream has no thread: a lone fault costs no thread switch, and of a batch that is spread over
  // several streams its waiter receives the first one's part while threads receive the others'.
  return std::make_shared<TcpConnection>(std::move(stream), &slot != slots[0].get(), check_digests);
}

// A token may have ended before its reader was given the next one, as when this process was stopped for long:
// says so and tries again with what readdress brings.
std::shared_ptr<TcpConnection> TcpReader::Impl::dial_or_wait(const Slot& slot) {
  try {
    return dial(slot);
  } catch (const TokenRefused& refused) {
    const uint64_t one = 1;
    if (wake.get() < 0 || ::write(wake.get(), &one, sizeof one) != sizeof one) throw;
    std::unique_lock lock(target_mutex);
    if (!readdressed.wait_for(lock, kTokenWait, [&] { return closed || round != refused.round; }) || closed)
      throw;
  }
  return dial(slot);
}

// The slot's connection, made anew where it failed; null with the reason while that is not possible.
std::shared_ptr<TcpConnection> TcpReader::Impl::connection(Slot& slot, Code& failure) {
  std::lock_guard lock(slot.mutex);
  failure = slot.last_failure;
  if (closed) return nullptr;
  if (slot.connection && slot.connection->usable()) return slot.connection;
  if (slot.connection) {
    slot.last_failure = failure = slot.connection->failure();
    slot.connection.reset();
  }
  if (Clock::now() < slot.retry_at) return nullptr;
  try {
    slot.connection = dial_or_wait(slot);
    if (slot.connected_before) ++reconnects;
    slot.connected_before = true;
    slot.backoff = kBackoffMin;
    return slot.connection;
  } catch (const Error& e) {
    slot.last_failure = failure = e.code;
    slot.retry_at = Clock::now() + slot.backoff;
    slot.backoff = std::min<Clock::duration>(slot.backoff * 2, kBackoffMax);
    return nullptr;
  }
}

std::unique_ptr<ReadBatch> TcpReader::submit(std::span<const ReadRequest> reads) {
  check_reads(reads);
  ++impl_->batches;
  auto batch = std::make_unique<TcpBatch>(reads.size(), impl_->transport(),
                                          [impl = impl_](size_t n, size_t failed, uint64_t bytes) {
                                            impl->reads += n;
                                            impl->failures += failed;
                                            impl->bytes += bytes;
                                          });
  uint64_t total = 0;
  for (const ReadRequest& read : reads) total += read.length;
  const size_t streams = total < kSpreadBytes ? 1 : impl_->slots.size();
  const uint64_t share = (total + streams - 1) / streams;
  for (size_t first = 0; first < reads.size();) {
    size_t count = 0;
    uint64_t bytes = 0;
    while (first + count < reads.size() && (bytes < share || count == 0))
      bytes += reads[first + count++].length;
    Impl::Slot& slot = *impl_->slots[streams == 1 ? 0 : impl_->turn++ % streams];
    Code failure = Code::ok;
    if (auto connection = impl_->connection(slot, failure)) {
      auto request = std::make_shared<TcpRequest>();
      request->reads.assign(reads.begin() + first, reads.begin() + first + count);
      connection->submit(request);
      batch->add({std::move(connection), std::move(request), first});
    } else {
      batch->fail(first, count, failure);
    }
    first += count;
  }
  return batch;
}

bool TcpReader::reconnect() {
  bool all = true;
  for (auto& slot : impl_->slots) {
    std::shared_ptr<TcpConnection> old, made;
    {
      std::lock_guard lock(slot->mutex);
      old = slot->connection;
    }
    if (!old) continue;
    Code failure = Code::ok;
    try {
      made = impl_->dial(*slot);
    } catch (const Error& e) {
      failure = e.code;
      all = false;
    }
    std::lock_guard lock(slot->mutex);
    if (impl_->closed || slot->connection != old) continue;
    // One that is not believed any more is used no more; one that did not answer is asked again by the next
    // read.
    if (made || failure == Code::unauthenticated) slot->connection = made;
    if (made) ++impl_->reconnects;
  }
  return all;
}

TransportStats TcpReader::stats() const {
  TransportStats out;
  out.batches = impl_->batches;
  out.reads = impl_->reads;
  out.bytes = out.by_transport[static_cast<size_t>(impl_->transport())] = impl_->bytes;
  out.failures = impl_->failures;
  out.reconnects = impl_->reconnects;
  out.refused_tokens = impl_->refused_tokens;
  return out;
}

void TcpReader::close() {
  {
    std::lock_guard lock(impl_->target_mutex);
    if (impl_->closed.exchange(true)) return;
  }
  impl_->readdressed.notify_all();
  for (auto& slot : impl_->slots) {
    std::lock_guard lock(slot->mutex);
    if (slot->connection) slot->connection->fail(Code::peer_unreachable);
    slot->last_failure = Code::peer_unreachable;
  }
}

}  // namespace medes
