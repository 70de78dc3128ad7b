#include "common/wiped.h"

#include <cstring>

namespace medes {

namespace {

// More than the deepest stage has (an encoder of pages and what it calls).
constexpr size_t kStackBytes = 64 * 1024;

[[gnu::noinline]] void wipe_stack() noexcept {
  std::byte below[kStackBytes];
  wipe(below, sizeof below);
}

}  // namespace

void wipe(void* memory, size_t bytes) noexcept { explicit_bzero(memory, bytes); }

void WipedRoom::grow(size_t n, size_t kept) {
  if (n <= size_) return;
  auto* const room = static_cast<uint8_t*>(::operator new(n));
  if (kept > 0) std::memcpy(room, data_, kept);
  release();
  data_ = room;
  size_ = n;
}

void WipedRoom::release() noexcept {
  if (!data_) return;
  wipe(data_, size_);
  ::operator delete(data_);
}

std::vector<WipedScratch*>& WipedScratch::of_thread() {
  static thread_local std::vector<WipedScratch*> kept;  // made before, and so gone after, what it lists
  return kept;
}

WipedScratch::WipedScratch() { of_thread().push_back(this); }
WipedScratch::~WipedScratch() { std::erase(of_thread(), this); }

void WorkScope::end() noexcept {
  for (WipedScratch* kept : WipedScratch::of_thread()) {
    if (!kept->used_) continue;
    kept->wipe_used();
    kept->used_ = false;
  }
  wipe_stack();
}

}  // namespace medes
