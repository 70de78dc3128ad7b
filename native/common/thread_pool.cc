#include "common/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>

#include "common/wiped.h"

namespace medes {

ThreadPool::ThreadPool(size_t threads) {
  for (size_t i = 0; i < std::max<size_t>(threads, 1); ++i) threads_.emplace_back([this] { run(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::submit(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void ThreadPool::run() {
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

namespace {

// Shared by the caller and its helpers; helpers that start after all blocks are taken just leave.
struct Loop {
  size_t n, block;
  const std::function<void(size_t, size_t)>* body;
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::condition_variable done;
  size_t active = 0;
  std::exception_ptr error;

  void work() {
    const WorkScope scope;
    for (;;) {
      size_t begin = next.fetch_add(block);
      if (begin >= n) return;
      try {
        (*body)(begin, std::min(n, begin + block));
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = n;
      }
    }
  }
};

}  // namespace

void ThreadPool::parallel_for(size_t n, size_t block, const std::function<void(size_t, size_t)>& body) {
  if (n == 0) return;
  block = std::max<size_t>(block, 1);
  auto loop = std::make_shared<Loop>();
  loop->n = n;
  loop->block = block;
  loop->body = &body;
  const size_t helpers = std::min(threads_.size(), (n - 1) / block);
  for (size_t i = 0; i < helpers; ++i) {
    submit([loop] {
      {
        std::lock_guard lock(loop->mutex);
        if (loop->next >= loop->n) return;  // the caller may already be gone, and `body` with it
        ++loop->active;
      }
      loop->work();
      std::lock_guard lock(loop->mutex);
      if (--loop->active == 0) loop->done.notify_all();
    });
  }
  loop->work();
  std::unique_lock lock(loop->mutex);
  loop->next = n;
  loop->done.wait(lock, [&] { return loop->active == 0; });
  if (loop->error) std::rethrow_exception(loop->error);
}

ThreadPool& ThreadPool::shared() {
  static ThreadPool pool(std::max<int>(1, static_cast<int>(std::thread::hardware_concurrency()) - 1));
  return pool;
}

}  // namespace medes
