// One client connection to a page server. Requests are pipelined and answered in order. Without a receiver
// thread (one stream a peer) whoever waits for a batch moves the bytes of all batches into their destinations
// until its own is complete, then hands the part on: no thread switch between socket and waiter. With one
// (several streams a peer) all streams receive at once. A connection that failed stays failed; its owner
// makes a new one.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "common/wiped.h"
#include "transport/page_reader.h"
#include "transport/socket.h"
#include "transport/wire.h"

namespace medes {

// The reads of one request on one connection. The destinations are written only while it is not `done` and
// not abandoned.
struct TcpRequest {
  std::vector<ReadRequest> reads;
  std::vector<Code> status;  // one a read
  bool done = false;         // guarded by the connection's mutex, as is all below
  bool abandoned = false;    // its bytes are received into scrap memory
};

class TcpConnection {
 public:
  // Takes over a connected stream after the hello exchange.
  TcpConnection(std::unique_ptr<Stream> stream, bool receiver_thread, bool check_digests);
  ~TcpConnection();

  // Queues the request and sends what the socket takes. On a failed connection it is done at once, with
  // every status peer_unreachable. Blocks only while kMaxRequestsInFlight are outstanding.
  void submit(std::shared_ptr<TcpRequest> request);
  // Moves bytes until the request is done (true) or the deadline has passed (false).
  bool wait(const TcpRequest& request, Deadline deadline);
  // After this nothing writes into the request's destinations. Never blocks on the peer.
  void abandon(TcpRequest& request);

  bool usable() const;  // not failed, nor closed by the peer while idle
  Code failure() const;
  void fail(Code code);  // ends all requests with `code`; idempotent
  const char* transport_name() const { return stream_->transport_name(); }

 private:
  using Lock = std::unique_lock<std::mutex>;
  bool step(Lock& lock);  // some non-blocking I/O; true when anything moved
  void pause(Lock& lock, Deadline deadline);
  void receive_loop();
  bool send_some();
  bool receive_some();
  size_t payload_parts(std::span<iovec> parts);
  IoResult take(std::span<iovec> parts);
  void put_back(std::span<const iovec> parts, size_t n);
  bool all_ok() const;
  void on_head(Bytes head);
  void on_bytes(size_t n);
  void finish_read();
  void finish_front();
  void fail_locked(Code code);
  void wake_poller();
  void ask_for(size_t bytes);

  const bool check_digests_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<Stream> stream_;
  FileDescriptor wake_;
  bool polling_ = false;
  std::atomic<bool> failed_{false};
  Code failure_ = Code::ok;
  uint64_t next_id_ = 1;
  uint64_t front_id_ = 1;  // id of requests_.front()
  std::deque<std::shared_ptr<TcpRequest>> requests_;
  Clock::time_point last_progress_;

  std::vector<std::byte> out_;  // requests not sent yet
  size_t out_sent_ = 0;

  // The reply under way: its head, then, read by read, its payload.
  std::vector<std::byte> head_;
  size_t head_received_ = 0;
  bool in_payload_ = false, short_payload_ = false;
  std::vector<wire::ReplyEntry> entries_;
  size_t payload_left_ = 0;
  size_t wake_bytes_ = 1;   // that poll() waits for
  size_t read_ = 0;         // index of the read whose bytes come next
  size_t read_offset_ = 0;  // bytes of it that have come
  std::vector<uint64_t> page_sums_;
  WipedRoom scrap_;
  WipedBytes surplus_;  // received, but put back
  size_t surplus_taken_ = 0;
  std::thread receiver_;
};

}  // namespace medes
