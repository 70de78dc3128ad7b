// Memory that bytes of sandboxes and of peers pass through. It is zero before anybody else gets it: what a
// piece of work has allocated when it is freed (WipedBytes), what threads keep from one piece of work to the
// next (ThreadScratch) and their stacks when the work ends (WorkScope). Memory that goes back to the kernel
// by munmap needs none of this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace medes {

// Zeros that no optimiser leaves out.
void wipe(void* memory, size_t bytes) noexcept;

template <typename T>
struct WipingAllocator {
  using value_type = T;
  WipingAllocator() = default;
  template <typename U>
  WipingAllocator(const WipingAllocator<U>&) noexcept {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T))); }
  void deallocate(T* p, size_t n) noexcept {
    wipe(p, n * sizeof(T));
    ::operator delete(p);
  }
  bool operator==(const WipingAllocator&) const noexcept { return true; }
};

using WipedBytes = std::vector<std::byte, WipingAllocator<std::byte>>;

// Room that is read into and written over again and again: what was not written yet is not zero but anything,
// so that growing costs no pass over it.
class WipedRoom {
 public:
  WipedRoom() = default;
  ~WipedRoom() { release(); }
  WipedRoom(const WipedRoom&) = delete;
  WipedRoom& operator=(const WipedRoom&) = delete;
  // At least n bytes; the first `kept` of them stay as they are.
  void grow(size_t n, size_t kept = 0);
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void release() noexcept;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

class WipedScratch {
 public:
  WipedScratch(const WipedScratch&) = delete;
  WipedScratch& operator=(const WipedScratch&) = delete;

 protected:
  WipedScratch();
  virtual ~WipedScratch();
  virtual void wipe_used() noexcept = 0;
  bool used_ = false;

 private:
  friend class WorkScope;
  static std::vector<WipedScratch*>& of_thread();
};

// A thread_local T that is slow to make anew: T::wipe() is called when the work that used it ends.
template <typename T>
class ThreadScratch final : WipedScratch {
 public:
  template <typename... Arguments>
  explicit ThreadScratch(Arguments&&... arguments) : value_(std::forward<Arguments>(arguments)...) {}
  T& use() noexcept {
    used_ = true;
    return value_;
  }

 private:
  void wipe_used() noexcept override { value_.wipe(); }
  T value_;
};

// A piece of work on this thread. At its end everything kept that was used is wiped, and the stack below.
class WorkScope {
 public:
  WorkScope() = default;
  ~WorkScope() { end(); }
  WorkScope(const WorkScope&) = delete;
  WorkScope& operator=(const WorkScope&) = delete;
  // Of work that has no scope of its own: a loop that is about to wait.
  static void end() noexcept;
};

}  // namespace medes
