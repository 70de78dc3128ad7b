#include "transport/rdma/rdma_reader.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "common/limits.h"

namespace medes {

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr size_t kSignalBytes = 512 * 1024;  // a completion at least this often: copying overlaps with READs
constexpr int kPollMax = 16;
constexpr int kSpinPolls = 64;         // before arming the completion channel: a READ takes microseconds
constexpr auto kPollSlice = 50ms;      // longest sleep of the polling thread while others may take over
constexpr auto kConnectGrace = 200ms;  // after asking for a connection it is worth waiting this long for it
constexpr auto kAskAgain = 1s;
constexpr auto kPauseWait = 1s;  // for a pause between reads, to replace the queue pair in

Code code_of(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_SUCCESS: return Code::ok;
    // The key is not (or no longer) valid for these bytes: the slab is gone.
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR: return Code::not_found;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_WR_FLUSH_ERR:
    case IBV_WC_REM_ABORT_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
    case IBV_WC_FATAL_ERR: return Code::peer_unreachable;
    default: return Code::internal;
  }
}

}  // namespace

// One read cut to at most a chunk.
struct RdmaReader::Segment {
  std::shared_ptr<BatchState> batch;
  uint32_t read = 0;    // index in the batch
  uint32_t offset = 0;  // within the read
  uint32_t length = 0;
  uint64_t remote_address = 0;
  uint32_t remote_key = 0;
};

// A posted READ: one contiguous remote range, the bytes of one or more segments.
struct RdmaReader::WorkRequest {
  uint64_t sequence = 0;
  RdmaClient::ChunkRef chunk;
  const std::byte* data = nullptr;
  std::vector<Segment> segments;
};

struct RdmaReader::BatchState {
  std::vector<ReadRequest> reads;
  std::vector<Code> status;
  std::vector<uint32_t> segments_left;  // per read
  size_t reads_left = 0;
  bool abandoned = false;
};

struct RdmaReader::QueuePair {
  explicit QueuePair(RdmaClient& c)
      : client(c),
        channel(c.device().make_channel()),
        cq(c.device().make_cq(static_cast<int>(kRdmaReadsPosted) + 16, channel.get())),
        psn(random_psn()),
        qp(c.device().make_qp(c.pd(), cq.get(), kRdmaReadsPosted, false)) {}
  ~QueuePair() { client.release_connection(); }
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;

  RdmaClient& client;
  ChannelHandle channel;
  CqHandle cq;
  uint32_t psn;
  QpHandle qp;  // destroyed first
};

class RdmaBatch : public ReadBatch {
 public:
  RdmaBatch(std::shared_ptr<RdmaReader> reader, std::shared_ptr<RdmaReader::BatchState> state)
      : reader_(std::move(reader)), state_(std::move(state)) {}
  ~RdmaBatch() override {
    // READs land in buffers of the reader; only the copy to the caller's memory has to be prevented.
    std::lock_guard lock(reader_->mutex_);
    state_->abandoned = true;
  }
  bool wait(std::chrono::nanoseconds timeout) override {
    return reader_->wait(*state_, Clock::now() + std::min<std::chrono::nanoseconds>(timeout, 24h));
  }
  Code status(size_t i) const override { return state_->status[i]; }
  Transport carried_by(size_t) const override { return Transport::rdma; }

 private:
  std::shared_ptr<RdmaReader> reader_;
  std::shared_ptr<RdmaReader::BatchState> state_;
};

RdmaReader::RdmaReader(std::shared_ptr<RdmaClient> client, uint64_t id)
    : client_(std::move(client)), id_(id), last_used_(Clock::now()) {}

RdmaReader::~RdmaReader() { close(); }

RdmaEndpoint RdmaReader::offer() {
  {
    std::lock_guard lock(mutex_);
    if (closed_) throw Error(Code::peer_unreachable, "reader is closed");
    break_connection(Code::peer_unreachable);
  }
  client_->reserve_connection(this);
  std::shared_ptr<QueuePair> made;
  try {
    // From here on QueuePair's destructor gives the reservation back.
    made = std::make_shared<QueuePair>(*client_);
  } catch (...) {
    client_->release_connection();
    throw;
  }
  std::lock_guard lock(mutex_);
  asked_at_ = Clock::now();
  qp_ = std::move(made);
  return client_->device().endpoint(qp_->qp.get(), qp_->psn);
}

void RdmaReader::connect(const RdmaEndpoint& remote) {
  {
    std::lock_guard lock(mutex_);
    if (!qp_ || connected_) throw Error(Code::invalid_argument, "connect without offer");
    try {
      client_->device().make_responder(qp_->qp.get(), remote);
      client_->device().make_initiator(qp_->qp.get(), remote, qp_->psn);
    } catch (...) {
      break_connection(Code::peer_unreachable);
      throw;
    }
    connected_ = true;
    asked_at_ = {};
    if (connected_before_) ++stats_.reconnects;
    connected_before_ = true;
    last_used_ = Clock::now();
  }
  changed_.notify_all();
}

bool RdmaReader::connected() const {
  std::lock_guard lock(mutex_);
  return connected_;
}

bool RdmaReader::await_connection(std::chrono::nanoseconds timeout) {
  Lock lock(mutex_);
  const auto until = std::min(Clock::now() + timeout, asked_at_ + kConnectGrace);
  return changed_.wait_until(lock, until, [&] { return connected_ || closed_; }) && connected_;
}

void RdmaReader::add_region(const RdmaRegion& region) {
  std::lock_guard lock(mutex_);
  regions_[region.base_id] = region;
}

size_t RdmaReader::keep_regions(std::span<const uint64_t> base_ids) {
  const std::unordered_set<uint64_t> kept(base_ids.begin(), base_ids.end());
  std::lock_guard lock(mutex_);
  return std::erase_if(regions_, [&](const auto& region) { return !kept.contains(region.first); });
}

bool RdmaReader::evict(std::chrono::nanoseconds idle) {
  std::lock_guard lock(mutex_);
  if (!connected_ || polling_ || !in_flight_.empty() || !queue_.empty() || Clock::now() - last_used_ < idle)
    return false;
  connected_ = false;
  qp_.reset();
  return true;
}

bool RdmaReader::reconnect() {
  {
    Lock lock(mutex_);
    if (!connected_) return true;  // the next read asks for one
    const auto quiet = [&] { return !connected_ || (!polling_ && in_flight_.empty() && queue_.empty()); };
    if (!changed_.wait_for(lock, kPauseWait, quiet)) return false;
    if (!connected_) return true;
    connected_ = false;
    qp_.reset();
    asked_at_ = Clock::now();
  }
  client_->want(id_);
  return true;
}

Clock::time_point RdmaReader::last_used() const {
  std::lock_guard lock(mutex_);
  return last_used_;
}

TransportCapabilities RdmaReader::capabilities() const {
  return {Transport::rdma, true, false, kMaxReadBytes, kMaxReadsPerBatch};
}

TransportStats RdmaReader::stats() const {
  std::lock_guard lock(mutex_);
  TransportStats out = stats_;
  out.by_transport[static_cast<size_t>(Transport::rdma)] = out.bytes;
  return out;
}

void RdmaReader::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    break_connection(Code::peer_unreachable);
  }
  changed_.notify_all();
}

std::unique_ptr<ReadBatch> RdmaReader::submit(std::span<const ReadRequest> reads) {
  check_reads(reads);
  auto batch = std::make_shared<BatchState>();
  batch->reads.assign(reads.begin(), reads.end());
  batch->status.assign(reads.size(), Code::ok);
  batch->segments_left.assign(reads.size(), 0);
  batch->reads_left = reads.size();
  bool wanted = false;
  {
    std::lock_guard lock(mutex_);
    ++stats_.batches;
    stats_.reads += reads.size();
    last_used_ = Clock::now();
    if (connected_) {
      enqueue(batch);
      post_some();
    } else {
      std::fill(batch->status.begin(), batch->status.end(), Code::peer_unreachable);
      batch->reads_left = 0;
      stats_.failures += reads.size();
      wanted = !closed_ && Clock::now() - asked_at_ > kAskAgain;
      if (wanted) asked_at_ = Clock::now();
    }
  }
  if (wanted) client_->want(id_);
  return std::make_unique<RdmaBatch>(shared_from_this(), std::move(batch));
}

// Turns the batch's reads into segments; reads that cannot be are ended here.
void RdmaReader::enqueue(const std::shared_ptr<BatchState>& batch) {
  for (uint32_t i = 0; i < batch->reads.size(); ++i) {
    const ReadRequest& read = batch->reads[i];
    const auto region = regions_.find(read.base_id);
    Code refused = Code::ok;
    if (region == regions_.end())
      refused = Code::not_found;
    else if (read.offset > region->second.length || read.length > region->second.length - read.offset)
      refused = Code::invalid_argument;
    if (refused != Code::ok) {
      batch->status[i] = refused;
      --batch->reads_left;
      ++stats_.failures;
      continue;
    }
    for (uint32_t at = 0; at < read.length; at += kRdmaChunkBytes) {
      const auto length = static_cast<uint32_t>(std::min<size_t>(read.length - at, kRdmaChunkBytes));
      queue_.push_back(
          {batch, i, at, length, region->second.address + read.offset + at, region->second.remote_key});
      ++batch->segments_left[i];
    }
  }
}

// Posts one linked list of READs if there is anything to post and room for it.
bool RdmaReader::post_some() {
  if (!connected_ || queue_.empty() || in_flight_.size() >= kRdmaReadsPosted) return false;
  ibv_send_wr requests[kRdmaReadsPerPost];
  ibv_sge buffers[kRdmaReadsPerPost];
  size_t count = 0;
  RdmaClient::ChunkRef chunk;
  size_t used = 0, unsignalled = 0;
  while (!queue_.empty() && count < kRdmaReadsPerPost && in_flight_.size() < kRdmaReadsPosted) {
    if (!chunk || used + queue_.front().length > kRdmaChunkBytes) {
      chunk = client_->take_chunk();
      used = 0;
      if (!chunk) break;  // a completion will bring one back
    }
    WorkRequest work;
    work.sequence = next_sequence_++;
    work.chunk = chunk;
    work.data = chunk->memory + used;
    const uint64_t address = queue_.front().remote_address;
    const uint32_t key = queue_.front().remote_key;
    uint32_t length = 0;
    while (!queue_.empty() && queue_.front().remote_key == key &&
           queue_.front().remote_address == address + length &&
           used + length + queue_.front().length <= kRdmaChunkBytes) {
      length += queue_.front().length;
      work.segments.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
    chunk->used = used + length;
    buffers[count] = {reinterpret_cast<uint64_t>(work.data), length, chunk->local_key};
    ibv_send_wr& request = requests[count];
    request = {};
    request.wr_id = work.sequence;
    request.sg_list = &buffers[count];
    request.num_sge = 1;
    request.opcode = IBV_WR_RDMA_READ;
    request.wr.rdma.remote_addr = address;
    request.wr.rdma.rkey = key;
    if (count > 0) requests[count - 1].next = &request;
    unsignalled += length;
    if (unsignalled >= kSignalBytes) {
      request.send_flags = IBV_SEND_SIGNALED;
      unsignalled = 0;
    }
    used += length;
    ++count;
    in_flight_.push_back(std::move(work));
  }
  if (count == 0) return false;
  requests[count - 1].send_flags = IBV_SEND_SIGNALED;
  ibv_send_wr* bad = nullptr;
  if (ibv_post_send(qp_->qp.get(), requests, &bad)) lose_connection();
  return true;
}

// READs of one queue pair complete in order: a completion, good or bad, says that all before it are done.
bool RdmaReader::poll_completions() {
  if (!qp_ || in_flight_.empty()) return false;
  ibv_wc completions[kPollMax];
  const int n = ibv_poll_cq(qp_->cq.get(), kPollMax, completions);
  if (n < 0) lose_connection();
  if (n <= 0) return false;
  for (int i = 0; i < n; ++i) {
    const ibv_wc& wc = completions[i];
    while (!in_flight_.empty() && in_flight_.front().sequence <= wc.wr_id) {
      const bool itself = in_flight_.front().sequence == wc.wr_id;
      WorkRequest work = std::move(in_flight_.front());
      in_flight_.pop_front();
      finish(work, itself ? code_of(wc.status) : Code::ok);
    }
    if (wc.status != IBV_WC_SUCCESS) {
      // The queue pair is in its error state; the rest would only be flushed.
      lose_connection();
      break;
    }
  }
  changed_.notify_all();
  return true;
}

void RdmaReader::finish(WorkRequest& work, Code code) {
  const std::byte* data = work.data;
  for (Segment& segment : work.segments) {
    finish_segment(segment, data, code);
    data += segment.length;
  }
}

void RdmaReader::finish_segment(Segment& segment, const std::byte* data, Code code) {
  BatchState& batch = *segment.batch;
  if (code != Code::ok)
    batch.status[segment.read] = code;
  else if (data && !batch.abandoned)
    std::memcpy(batch.reads[segment.read].destination + segment.offset, data, segment.length);
  if (--batch.segments_left[segment.read] > 0) return;
  if (batch.status[segment.read] == Code::ok)
    stats_.bytes += batch.reads[segment.read].length;
  else
    ++stats_.failures;
  --batch.reads_left;
}

// Ends everything that is outstanding. The queue pair is destroyed before the buffers are given back, so that
// no late READ lands in memory that serves another.
void RdmaReader::break_connection(Code code) {
  connected_ = false;
  if (qp_) qp_->qp.reset();  // a poller may hold on to the rest
  qp_.reset();
  for (WorkRequest& work : in_flight_) finish(work, code);
  in_flight_.clear();
  for (Segment& segment : queue_) finish_segment(segment, nullptr, code);
  queue_.clear();
  changed_.notify_all();
}

void RdmaReader::lose_connection() {
  if (connected_) ++stats_.breaks;
  break_connection(Code::peer_unreachable);
}

bool RdmaReader::step() {
  const bool completed = poll_completions();
  const bool posted = post_some();
  return completed || posted;
}

bool RdmaReader::wait(BatchState& batch, Clock::time_point deadline) {
  Lock lock(mutex_);
  int spins = 0;
  while (batch.reads_left > 0) {
    if (!polling_ && step()) {
      spins = 0;
      continue;
    }
    if (batch.reads_left == 0) break;
    if (!polling_ && ++spins < kSpinPolls) continue;
    spins = 0;
    if (Clock::now() >= deadline) return false;
    pause(lock, deadline);
  }
  if (!in_flight_.empty() || !queue_.empty()) changed_.notify_all();
  last_used_ = Clock::now();
  return true;
}

void RdmaReader::pause(Lock& lock, Clock::time_point deadline) {
  if (polling_ || !qp_ || in_flight_.empty()) {
    // Someone else polls; or all buffers are with other readers, whose completions nobody announces here.
    changed_.wait_until(lock,
                        std::min(deadline, Clock::now() + (polling_ ? Clock::duration(kPollSlice) : 1ms)));
    return;
  }
  if (ibv_req_notify_cq(qp_->cq.get(), 0)) return lose_connection();
  if (poll_completions()) return;  // came between the last poll and arming
  if (!qp_) return;
  const std::shared_ptr<QueuePair> held =
      qp_;  // channel and queue live on if the connection breaks meanwhile
  pollfd entry{held->channel->fd, POLLIN, 0};
  const auto slice = std::min<Clock::duration>(deadline - Clock::now(), kPollSlice);
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(slice).count();
  polling_ = true;
  lock.unlock();
  const int n = poll(&entry, 1, static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX)));
  if (n > 0) {
    ibv_cq* cq = nullptr;
    void* context = nullptr;
    if (verbs().get_cq_event(held->channel.get(), &cq, &context) == 0) verbs().ack_cq_events(cq, 1);
  }
  lock.lock();
  polling_ = false;
  changed_.notify_all();
}

}  // namespace medes
