// The active side of RDMA page reads, node-wide: one device, registered buffers that READs land in, and a
// bounded set of queue pairs, one a reader. When the bound is hit the reader that was idle longest loses its
// queue pair; it gets a new one when it is next used. Setting one up takes an exchange with the peer, which
// this layer cannot do: it says which readers want one (take_wanted), and they fail fast until then.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "transport/rdma/rdma_device.h"

namespace medes {

class RdmaReader;

inline constexpr size_t kRdmaChunkBytes = 256 * 1024;

class RdmaClient : public std::enable_shared_from_this<RdmaClient> {
 public:
  // A piece of the registered buffer, given back when the last reference goes.
  struct Chunk {
    std::byte* memory = nullptr;
    uint32_t local_key = 0;
    size_t used = 0;  // bytes that reads may have filled
  };
  using ChunkRef = std::shared_ptr<Chunk>;

  RdmaClient(std::shared_ptr<RdmaDevice> device, size_t buffer_bytes, size_t connections_max);
  ~RdmaClient();

  std::shared_ptr<RdmaReader> make_reader();
  RdmaDevice& device() { return *device_; }
  ibv_pd* pd() { return pd_.get(); }

  ChunkRef take_chunk();  // null when all are in use
  // Room for one more queue pair, made by evicting an idle one where needed. Throws busy.
  void reserve_connection(const RdmaReader* asking);
  void release_connection();

  void want(uint64_t reader_id);
  // Ids of readers that were used without a queue pair since the last call. Blocks up to `timeout`.
  std::vector<uint64_t> take_wanted(std::chrono::nanoseconds timeout);
  size_t evict_idle(std::chrono::nanoseconds idle);  // returns how many queue pairs were closed
  size_t connections() const;
  uint64_t evictions() const;
  void close();  // wakes take_wanted

 private:
  struct Pool;
  std::shared_ptr<RdmaDevice> device_;
  PdHandle pd_;
  std::shared_ptr<Pool> pool_;
  const size_t connections_max_;

  mutable std::mutex mutex_;
  std::condition_variable wanted_changed_;
  std::deque<uint64_t> wanted_;
  std::vector<std::weak_ptr<RdmaReader>> readers_;
  size_t connections_ = 0;
  uint64_t evictions_ = 0, next_id_ = 1;
  bool closed_ = false;
};

}  // namespace medes
