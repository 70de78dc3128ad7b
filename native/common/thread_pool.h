// A fixed set of worker threads shared by the pipeline stages. Tasks must not block on other tasks of
// the same pool (parallel_for may be called from a non-pool thread only; the caller works along).
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace medes {

class ThreadPool {
 public:
  explicit ThreadPool(size_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t size() const { return threads_.size(); }
  void submit(std::function<void()> task);

  // Runs body(begin, end) over [0, n) in blocks of `block`; blocks until all are done; rethrows the
  // first exception after every started block has ended.
  void parallel_for(size_t n, size_t block, const std::function<void(size_t, size_t)>& body);

  // The process-wide pool, one thread fewer than cores (the caller is the other), at least one.
  static ThreadPool& shared();

 private:
  void run();
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace medes
