#include "transport/rdma/rdma_client.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "common/error.h"
#include "common/wiped.h"
#include "transport/rdma/rdma_reader.h"

namespace medes {

// The registered buffer. Outlives the client while chunks are out.
struct RdmaClient::Pool {
  Pool(RdmaDevice& device, ibv_pd* pd, size_t n) : bytes(n) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw errno_error(errno, "cannot map RDMA buffers");
    memory = static_cast<std::byte*>(mapped);
    madvise(memory, bytes, MADV_HUGEPAGE);  // fewer translations in the adapter; works without
    try {
      mr = device.register_memory(pd, memory, bytes, IBV_ACCESS_LOCAL_WRITE);
    } catch (...) {
      munmap(memory, bytes);
      throw;
    }
    for (size_t at = 0; at + kRdmaChunkBytes <= bytes; at += kRdmaChunkBytes) free.push_back(memory + at);
  }
  ~Pool() {
    mr.reset();
    munmap(memory, bytes);
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  std::byte* memory = nullptr;
  size_t bytes;
  MrHandle mr;
  std::mutex mutex;
  std::vector<std::byte*> free;
};

RdmaClient::RdmaClient(std::shared_ptr<RdmaDevice> device, size_t buffer_bytes, size_t connections_max)
    : device_(std::move(device)), pd_(device_->make_pd()), connections_max_(connections_max) {
  if (buffer_bytes < kRdmaChunkBytes || connections_max == 0)
    throw Error(Code::invalid_argument, "RDMA buffers need at least one chunk and one connection");
  pool_ = std::make_shared<Pool>(*device_, pd_.get(), buffer_bytes / kRdmaChunkBytes * kRdmaChunkBytes);
}

RdmaClient::~RdmaClient() { close(); }

void RdmaClient::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  wanted_changed_.notify_all();
}

std::shared_ptr<RdmaReader> RdmaClient::make_reader() {
  std::lock_guard lock(mutex_);
  std::erase_if(readers_, [](const auto& reader) { return reader.expired(); });
  auto reader = std::make_shared<RdmaReader>(shared_from_this(), next_id_++);
  readers_.push_back(reader);
  return reader;
}

RdmaClient::ChunkRef RdmaClient::take_chunk() {
  std::lock_guard lock(pool_->mutex);
  if (pool_->free.empty()) return nullptr;
  auto* chunk = new Chunk{pool_->free.back(), pool_->mr->lkey};
  pool_->free.pop_back();
  return {chunk, [pool = pool_](Chunk* c) {
            wipe(c->memory, c->used);  // the next reader may be of another domain
            std::lock_guard pool_lock(pool->mutex);
            pool->free.push_back(c->memory);
            delete c;
          }};
}

void RdmaClient::reserve_connection(const RdmaReader* asking) {
  std::vector<std::shared_ptr<RdmaReader>> candidates;
  {
    std::lock_guard lock(mutex_);
    if (connections_ < connections_max_) {
      ++connections_;
      return;
    }
    for (auto& weak : readers_)
      if (auto reader = weak.lock(); reader && reader.get() != asking)
        candidates.push_back(std::move(reader));
  }
  // Longest idle first. A reader in use refuses.
  std::sort(candidates.begin(), candidates.end(),
            [](const auto& a, const auto& b) { return a->last_used() < b->last_used(); });
  for (auto& reader : candidates) {
    if (!reader->evict(std::chrono::nanoseconds(0))) continue;
    std::lock_guard lock(mutex_);
    ++evictions_;
    if (connections_ < connections_max_) {
      ++connections_;
      return;
    }
  }
  throw Error(Code::busy, "all " + std::to_string(connections_max_) + " RDMA connections are in use");
}

void RdmaClient::release_connection() {
  std::lock_guard lock(mutex_);
  --connections_;
}

void RdmaClient::want(uint64_t reader_id) {
  {
    std::lock_guard lock(mutex_);
    if (std::find(wanted_.begin(), wanted_.end(), reader_id) == wanted_.end()) wanted_.push_back(reader_id);
  }
  wanted_changed_.notify_all();
}

std::vector<uint64_t> RdmaClient::take_wanted(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  wanted_changed_.wait_for(lock, timeout, [&] { return closed_ || !wanted_.empty(); });
  std::vector<uint64_t> out(wanted_.begin(), wanted_.end());
  wanted_.clear();
  return out;
}

size_t RdmaClient::evict_idle(std::chrono::nanoseconds idle) {
  std::vector<std::shared_ptr<RdmaReader>> readers;
  {
    std::lock_guard lock(mutex_);
    for (auto& weak : readers_)
      if (auto reader = weak.lock()) readers.push_back(std::move(reader));
  }
  size_t evicted = 0;
  for (auto& reader : readers)
    if (reader->evict(idle)) ++evicted;
  std::lock_guard lock(mutex_);
  evictions_ += evicted;
  return evicted;
}

size_t RdmaClient::connections() const {
  std::lock_guard lock(mutex_);
  return connections_;
}

uint64_t RdmaClient::evictions() const {
  std::lock_guard lock(mutex_);
  return evictions_;
}

}  // namespace medes
