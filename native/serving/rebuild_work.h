// What the threads that rebuild pages share: a worker's buffers, claims on pages, pauses.
#pragma once

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "restore/rebuilder.h"
#include "serving/process_memory.h"

namespace medes {

inline constexpr const char* kRebuildFailed = "a page could not be rebuilt";
inline constexpr int kBackgroundNice = 19;  // the sandbox's own threads come first
// A memory cgroup that is full may have room again in a moment: asked again after 20 ms, then twice as long.
inline constexpr std::chrono::milliseconds kMemoryBackoffFirst{20};
inline constexpr int kMemoryBackoffDoublings = 4;

class MemoryClaims : public PageClaims {
 public:
  explicit MemoryClaims(ProcessMemory& memory) : memory_(memory) {}
  bool claim(uint64_t page) override { return memory_.claim(page); }
  void unclaim(uint64_t page) override { memory_.unclaim(page); }

 private:
  ProcessMemory& memory_;
};

inline std::vector<uint64_t> evicted_pages(const ProcessMemory& memory) {
  std::vector<uint64_t> pages;
  for (uint64_t p = memory.first_page(); p < memory.end_page(); ++p)
    if (memory.state(p) == PageState::evicted) pages.push_back(p);
  return pages;
}

inline void set_nice(int nice) {
  (void)setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), nice);
}

// A worker's buffers are too large to be made anew for a piece of work, and those used last are in the cache.
class WorkerLease {
 public:
  WorkerLease() {
    const std::lock_guard lock(idle().mutex);
    if (auto& workers = idle().workers; !workers.empty()) {
      worker_ = std::move(workers.back());
      workers.pop_back();
    }
    if (!worker_) worker_ = std::make_unique<Rebuilder::Worker>();
  }
  ~WorkerLease() {
    worker_->wipe();
    const std::lock_guard lock(idle().mutex);
    idle().workers.push_back(std::move(worker_));
  }
  WorkerLease(const WorkerLease&) = delete;
  WorkerLease& operator=(const WorkerLease&) = delete;
  Rebuilder::Worker& operator*() { return *worker_; }

 private:
  struct Idle {
    std::mutex mutex;
    std::vector<std::unique_ptr<Rebuilder::Worker>> workers;  // as many as ever were at work at once
  };
  static Idle& idle() {
    static auto& pool = *new Idle;  // threads may outlive static objects
    return pool;
  }
  std::unique_ptr<Rebuilder::Worker> worker_;
};

inline std::chrono::milliseconds memory_pause(int tries) {
  return kMemoryBackoffFirst * (1 << std::min(tries, kMemoryBackoffDoublings));
}

}  // namespace medes
