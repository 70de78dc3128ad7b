// Whether what a restore is to place fits the memory cgroups of the sandbox (procfs/memory_room.h measures).
#include <chrono>
#include <mutex>
#include <optional>

#include "serving/served_sandbox.h"

namespace medes {
namespace {

// How long after a fork parent and child are expected to write what they share.
constexpr std::chrono::seconds kChildWrites{10};
// Left to the program, and to what other threads of ours place between a look and the deed.
constexpr uint64_t kRoomReserve = 1u << 20;

}  // namespace

// Where what is missing does not all fit the memory limit, the kernel would kill for it (or refuse it, where
// its killer is off): it comes page by page then, when it is touched, for as long as there is room for that.
// A child and its parent share what is there since the fork, and each gets a copy of what was missing: what
// the program would have shared may well never be needed twice, and a child that ends leaves room. Of what
// they do share either may write any page and so get a copy: that room is the program's, until a child that
// lives on has had its time to do so.
bool ServedSandbox::room_for_all() {
  const auto now = Clock::now();
  uint64_t pages = 0;
  for (const auto& m : memories()) {
    const bool is_child = m->is_forked_child();
    if (m->missing() == 0 || (is_child ? m->look_whether_gone() : m->gone())) continue;
    const bool writes = is_child && now < m->since() + kChildWrites;
    pages += writes ? m->end_page() - m->first_page() : m->missing();
  }
  return room_for(pages * kPageBytes);
}

bool ServedSandbox::room_for(uint64_t bytes) {
  std::optional<MemoryRoom> room;
  {
    const std::lock_guard lock(mutex_);
    if (!room_) room_.emplace(memories_.front()->pid());  // its groups, should it end before its children
    room = room_;
  }
  return room->has(bytes + kRoomReserve);
}

void ServedSandbox::short_of_memory() {
  if (told_short_of_memory_.exchange(true)) return;
  server_.emit(file_->path(), "short_of_memory");
}

}  // namespace medes
