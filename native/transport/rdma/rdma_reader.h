// PageReader over one reliable connection. Reads become READs into registered buffers: neighbours in a batch
// are merged, long reads cut, lists of them posted with one call, only the last of a list signalled. As with
// TCP there is no thread behind it: a waiter polls the completion queue for all.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "transport/page_reader.h"
#include "transport/rdma/rdma_client.h"

namespace medes {

inline constexpr uint32_t kRdmaReadsPosted = 128;  // at a time; the adapter starts max_rd_atomic of them
inline constexpr size_t kRdmaReadsPerPost = 32;    // in one linked list

class RdmaReader : public PageReader, public std::enable_shared_from_this<RdmaReader> {
 public:
  RdmaReader(std::shared_ptr<RdmaClient> client, uint64_t id);
  ~RdmaReader() override;

  uint64_t id() const { return id_; }
  // Makes a queue pair and says how to reach it; a connection that there was is dropped. Throws busy, io.
  RdmaEndpoint offer();
  // Completes the connection that offer() began. Throws invalid_argument, io.
  void connect(const RdmaEndpoint& remote);
  bool connected() const override;
  bool await_connection(std::chrono::nanoseconds timeout) override;

  void add_region(const RdmaRegion& region);  // replaces
  // Forgets all but these: what the peer no longer has, or nobody here reads. Returns how many went.
  size_t keep_regions(std::span<const uint64_t> base_ids);

  // Closes the queue pair if nothing is in flight and it was not used for `idle`.
  bool evict(std::chrono::nanoseconds idle);
  std::chrono::steady_clock::time_point last_used() const;

  TransportCapabilities capabilities() const override;
  std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) override;
  TransportStats stats() const override;
  void close() override;
  bool reconnect() override;  // closes the queue pair between two reads and asks for another

 private:
  friend class RdmaBatch;
  struct BatchState;
  struct Segment;
  struct WorkRequest;
  struct QueuePair;
  using Lock = std::unique_lock<std::mutex>;

  void enqueue(const std::shared_ptr<BatchState>& batch);
  bool step();
  bool post_some();
  bool poll_completions();
  void pause(Lock& lock, std::chrono::steady_clock::time_point deadline);
  void finish(WorkRequest& work, Code code);
  void finish_segment(Segment& segment, const std::byte* data, Code code);
  void break_connection(Code code);
  void lose_connection();  // the same after an error, counted
  bool wait(BatchState& batch, std::chrono::steady_clock::time_point deadline);

  const std::shared_ptr<RdmaClient> client_;
  const uint64_t id_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<QueuePair> qp_;
  bool connected_ = false, closed_ = false, polling_ = false, connected_before_ = false;
  std::chrono::steady_clock::time_point asked_at_{};  // when a connection was last asked for
  uint64_t next_sequence_ = 1;
  std::deque<Segment> queue_;          // not posted yet
  std::deque<WorkRequest> in_flight_;  // in the order of their sequence numbers
  std::unordered_map<uint64_t, RdmaRegion> regions_;
  std::chrono::steady_clock::time_point last_used_;
  TransportStats stats_;
};

}  // namespace medes
