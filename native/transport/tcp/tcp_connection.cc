#include "transport/tcp/tcp_connection.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "common/checksum.h"

namespace medes {

namespace {

using namespace std::chrono_literals;

constexpr size_t kMaxRequestsInFlight = 256;  // a connection
constexpr auto kStallTimeout = 10s;           // requests outstanding and not a byte: the peer is dead
constexpr size_t kWakeBytes = 64 * 1024;      // of a payload under way, before a waiter is woken
constexpr size_t kShortPayloadBytes = 512 * 1024;
// Received under the lock at once. A quarter of it costs large batches 4 to 9 % of their speed, and batches
// that faults wait for are smaller than both.
constexpr size_t kStepBytes = 1024 * 1024;
constexpr size_t kStepParts = 256;

std::vector<wire::ReadDescriptor> descriptors(const std::vector<ReadRequest>& reads) {
  std::vector<wire::ReadDescriptor> out;
  out.reserve(reads.size());
  for (const ReadRequest& read : reads) out.push_back({read.base_id, read.offset, read.length, 0});
  return out;
}

}  // namespace

TcpConnection::TcpConnection(std::unique_ptr<Stream> stream, bool receiver_thread, bool check_digests)
    : check_digests_(check_digests),
      stream_(std::move(stream)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      last_progress_(Clock::now()) {
  if (wake_.get() < 0) throw errno_error(errno, "eventfd");
  if (receiver_thread) receiver_ = std::thread([this] { receive_loop(); });
}

TcpConnection::~TcpConnection() {
  fail(Code::peer_unreachable);
  if (receiver_.joinable()) receiver_.join();
}

void TcpConnection::receive_loop() {
  Lock lock(mutex_);
  while (!failed_) {
    if (requests_.empty())
      changed_.wait(lock);
    else if (!step(lock))
      pause(lock, Deadline::max());
  }
}

bool TcpConnection::usable() const {
  std::lock_guard lock(mutex_);
  if (failed_) return false;
  if (!requests_.empty()) return true;
  if (stream_->spent()) return false;
  // Not POLLIN: a TLS server sends session tickets on its own account.
  pollfd entry{stream_->fd(), POLLRDHUP, 0};
  return poll(&entry, 1, 0) == 0;
}

Code TcpConnection::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

void TcpConnection::fail(Code code) {
  std::lock_guard lock(mutex_);
  fail_locked(code);
}

void TcpConnection::fail_locked(Code code) {
  if (failed_) return;
  failed_ = true;
  failure_ = code;
  for (auto& request : requests_) {
    for (Code& status : request->status)
      if (status == Code::busy) status = code;
    request->done = true;
  }
  requests_.clear();
  stream_->shut_down();
  wake_poller();
  changed_.notify_all();
}

void TcpConnection::wake_poller() {
  const uint64_t one = 1;
  if (polling_) (void)!::write(wake_.get(), &one, sizeof one);
}

void TcpConnection::submit(std::shared_ptr<TcpRequest> request) {
  const auto table = descriptors(request->reads);
  Lock lock(mutex_);
  // `busy` marks a read that has no outcome yet.
  request->status.assign(request->reads.size(), Code::busy);
  while (!failed_ && requests_.size() >= kMaxRequestsInFlight)
    if (!step(lock)) pause(lock, Clock::now() + 1s);
  if (failed_) {
    std::fill(request->status.begin(), request->status.end(), failure_);
    request->done = true;
    return;
  }
  const std::vector<std::byte> frame = wire::make_request(next_id_++, table);
  if (requests_.empty()) last_progress_ = Clock::now();
  requests_.push_back(std::move(request));
  out_.insert(out_.end(), frame.begin(), frame.end());
  send_some();
  if (!out_.empty()) wake_poller();  // the poller must now wait for POLLOUT as well
  if (receiver_.joinable()) changed_.notify_all();
}

bool TcpConnection::wait(const TcpRequest& request, Deadline deadline) {
  Lock lock(mutex_);
  while (!request.done) {
    if (!receiver_.joinable() && step(lock)) continue;
    if (request.done) break;
    if (Clock::now() >= deadline) return false;
    if (receiver_.joinable())
      changed_.wait_until(lock, deadline);
    else
      pause(lock, deadline);
  }
  // Another waiter may have to take the receiving over, or this one has received the other's reply.
  changed_.notify_all();
  return true;
}

void TcpConnection::abandon(TcpRequest& request) {
  std::lock_guard lock(mutex_);  // bytes are only moved with the lock held
  request.abandoned = true;
}

// Sleeps until the socket or another thread's progress may have changed something.
void TcpConnection::pause(Lock& lock, Deadline deadline) {
  if (failed_) return;
  if (polling_) {
    changed_.wait_until(lock, deadline);
    return;
  }
  if (!requests_.empty()) deadline = std::min(deadline, last_progress_ + kStallTimeout);
  // Woken for every segment, a waiter takes the socket's lock from the sender once a segment: 64 scattered
  // pages then ran at 92 % of a bare socket, now at 100 %. Never for the tail: nothing may come behind it.
  // Nor for long payloads, where the sender runs dry while this end sleeps: 512 pages ran at 84 % with it, 96
  // % without.
  ask_for(in_payload_ && short_payload_ && payload_left_ >= 2 * kWakeBytes ? kWakeBytes : 1);
  pollfd entries[2] = {{stream_->fd(), static_cast<short>(POLLIN | (out_.empty() ? 0 : POLLOUT)), 0},
                       {wake_.get(), POLLIN, 0}};
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  polling_ = true;
  lock.unlock();
  const int n = poll(entries, 2, static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX)));
  lock.lock();
  polling_ = false;
  uint64_t count = 0;
  if (n > 0 && entries[1].revents) (void)!::read(wake_.get(), &count, sizeof count);
  if (!requests_.empty() && Clock::now() >= last_progress_ + kStallTimeout) {
    // Poll may have been late rather than the peer, or less have come than it was to wait for: look once
    // more.
    if (receive_some())
      last_progress_ = Clock::now();
    else
      fail_locked(Code::peer_unreachable);
  }
  changed_.notify_all();
}

// Lets poll() sleep until so many bytes have come, or the end of the stream.
void TcpConnection::ask_for(size_t bytes) {
  if (bytes == wake_bytes_ || stream_->buffers()) return;
  const int value = static_cast<int>(bytes);
  if (setsockopt(stream_->fd(), SOL_SOCKET, SO_RCVLOWAT, &value, sizeof value) == 0) wake_bytes_ = bytes;
}

bool TcpConnection::step(Lock&) {
  if (failed_) return false;
  const bool sent = send_some();
  const bool received = receive_some();
  if (received) {
    last_progress_ = Clock::now();
    // The thread in poll() sleeps on when the bytes it was to be woken for are gone by the time it looks.
    wake_poller();
  }
  return sent || received;
}

bool TcpConnection::send_some() {
  if (failed_ || out_.empty()) return false;
  bool moved = false;
  while (out_sent_ < out_.size()) {
    const iovec part{out_.data() + out_sent_, out_.size() - out_sent_};
    const IoResult result = stream_->write({&part, 1});
    if (result.status == IoStatus::progress) {
      out_sent_ += result.bytes;
      moved = true;
      continue;
    }
    if (result.status == IoStatus::closed || result.status == IoStatus::failed) {
      // The server may have said why before it closed.
      while (receive_some()) {
      }
      fail_locked(Code::peer_unreachable);
    }
    return moved;
  }
  out_.clear();
  out_sent_ = 0;
  return moved;
}

// Receives what comes next of the oldest request's reply: the rest of its head and, in the same call, as much
// of the payload as one step takes. Before the head is known the payload is laid out as if every read were
// ok.
bool TcpConnection::receive_some() {
  if (failed_ || requests_.empty()) return false;
  iovec parts[1 + kStepParts];
  size_t count = 0;
  if (!in_payload_) {
    // Its size is known from the request it answers.
    head_.resize(sizeof(wire::ReplyHeader) + requests_.front()->reads.size() * sizeof(wire::ReplyEntry));
    parts[count++] = {head_.data() + head_received_, head_.size() - head_received_};
  }
  const size_t of_head = count;
  count += payload_parts(std::span(parts).subspan(of_head));
  const IoResult result = take({parts, count});
  if (result.status == IoStatus::closed || result.status == IoStatus::failed) {
    fail_locked(Code::peer_unreachable);
    return false;
  }
  if (result.status != IoStatus::progress) return false;
  try {
    size_t payload = result.bytes;
    if (!in_payload_) {
      const size_t head = std::min(payload, head_.size() - head_received_);
      payload -= head;
      head_received_ += head;
      if (head_received_ >= sizeof(wire::ReplyHeader)) on_head(Bytes(head_).first(head_received_));
      if (!in_payload_) return true;
      if (payload > 0 && !all_ok()) {
        put_back({parts + of_head, count - of_head}, payload);
        payload = 0;
      }
    }
    on_bytes(payload);
    return true;
  } catch (const Error& e) {
    fail_locked(e.code);
    return false;
  }
}

// Where the next payload bytes go: the rest of the read under way and the reads after it.
size_t TcpConnection::payload_parts(std::span<iovec> parts) {
  TcpRequest& request = *requests_.front();
  size_t count = 0, room = 0;
  for (size_t i = in_payload_ ? read_ : 0; i < request.reads.size(); ++i) {
    if (count == parts.size() || room == kStepBytes) break;
    const size_t length = in_payload_ ? entries_[i].length : request.reads[i].length;
    const size_t done = in_payload_ && i == read_ ? read_offset_ : 0;
    const size_t n = std::min(length - done, kStepBytes - room);
    if (n == 0) continue;
    parts[count++] = {request.reads[i].destination + done, n};
    room += n;
  }
  if (request.abandoned) {  // its destinations may be gone: all of it goes to scrap memory
    scrap_.grow(room);
    if (count > 0) parts[0] = {scrap_.data(), room};
    count = std::min<size_t>(count, 1);
  }
  return count;
}

// Reads from the stream, after what was put back.
IoResult TcpConnection::take(std::span<iovec> parts) {
  if (surplus_.empty()) return stream_->read(parts);
  size_t taken = 0;
  for (const iovec& part : parts) {
    const size_t n = std::min(part.iov_len, surplus_.size() - surplus_taken_);
    if (n == 0) break;
    std::memcpy(part.iov_base, surplus_.data() + surplus_taken_, n);
    surplus_taken_ += n;
    taken += n;
  }
  if (surplus_taken_ == surplus_.size()) {
    surplus_.clear();
    surplus_taken_ = 0;
  }
  return {IoStatus::progress, taken};
}

// The first n bytes of `parts` came for other places: some read has failed and sent none.
void TcpConnection::put_back(std::span<const iovec> parts, size_t n) {
  WipedBytes bytes;
  bytes.reserve(n + surplus_.size() - surplus_taken_);
  for (const iovec& part : parts) {
    const auto* begin = static_cast<const std::byte*>(part.iov_base);
    const size_t from_part = std::min(part.iov_len, n);
    bytes.insert(bytes.end(), begin, begin + from_part);
    n -= from_part;
  }
  bytes.insert(bytes.end(), surplus_.begin() + static_cast<ptrdiff_t>(surplus_taken_), surplus_.end());
  surplus_ = std::move(bytes);
  surplus_taken_ = 0;
}

bool TcpConnection::all_ok() const {
  return std::all_of(entries_.begin(), entries_.end(), [](const wire::ReplyEntry& entry) {
    return entry.status == static_cast<uint16_t>(Code::ok);
  });
}

// The reply's header, checked as soon as it is there, and its entries once all have come.
void TcpConnection::on_head(Bytes head) {
  const auto header = wire::parse_reply_header(head.first(sizeof(wire::ReplyHeader)));
  if (header.type == wire::kReplyError)
    throw Error(wire::code_from_wire(header.status), "page server refused");
  TcpRequest& request = *requests_.front();
  if (header.request_id != front_id_ || header.count != request.reads.size())
    throw Error(Code::corrupt, "reply does not answer the oldest request");
  if (head.size() < head_.size()) return;
  std::vector<uint32_t> lengths;
  lengths.reserve(request.reads.size());
  for (const ReadRequest& read : request.reads) lengths.push_back(read.length);
  entries_ = wire::parse_reply_body(header, head.subspan(sizeof(wire::ReplyHeader)), lengths);
  in_payload_ = true;
  payload_left_ = 0;
  for (const wire::ReplyEntry& entry : entries_) payload_left_ += entry.length;
  short_payload_ = payload_left_ <= kShortPayloadBytes;
  head_received_ = 0;
  read_ = 0;
  read_offset_ = 0;
  page_sums_.clear();
}

// Accounts for n received bytes: checksums every page while it is still in the cache, ends reads and
// requests.
void TcpConnection::on_bytes(size_t n) {
  TcpRequest& request = *requests_.front();
  payload_left_ -= std::min(n, payload_left_);
  for (;;) {
    if (read_ == entries_.size()) return finish_front();
    const wire::ReplyEntry& entry = entries_[read_];
    const size_t taken = std::min<size_t>(n, entry.length - read_offset_);
    if (check_digests_ && taken > 0 && !request.abandoned &&
        wire::digested_by_pages(request.reads[read_].offset, entry.length)) {
      const size_t until = (read_offset_ + taken) / kPageBytes;
      for (size_t page = page_sums_.size(); page < until; ++page)
        page_sums_.push_back(checksum64({request.reads[read_].destination + page * kPageBytes, kPageBytes}));
    }
    read_offset_ += taken;
    n -= taken;
    if (read_offset_ < entry.length) return;
    finish_read();
  }
}

void TcpConnection::finish_read() {
  TcpRequest& request = *requests_.front();
  const wire::ReplyEntry& entry = entries_[read_];
  Code status = wire::code_from_wire(entry.status);
  if (check_digests_ && status == Code::ok && !request.abandoned) {
    const ReadRequest& read = request.reads[read_];
    const uint64_t digest = wire::digested_by_pages(read.offset, read.length)
                                ? wire::digest_of_pages(page_sums_)
                                : checksum64({read.destination, read.length});
    if (digest != entry.digest) status = Code::corrupt;
  }
  // busy is the mark of a read without outcome; a server that is busy is as good as unreachable.
  request.status[read_] = status == Code::busy ? Code::peer_unreachable : status;
  ++read_;
  read_offset_ = 0;
  page_sums_.clear();
}

void TcpConnection::finish_front() {
  requests_.front()->done = true;
  requests_.pop_front();
  ++front_id_;
  in_payload_ = false;
  changed_.notify_all();
}

}  // namespace medes
