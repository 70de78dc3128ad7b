// What this process may do beyond its user: given up where it is not needed.
#pragma once

#include <span>

namespace medes {

// Gives up, for good, every capability but those: in the bounding set, so that no program executed later has
// them either, and in the calling thread. Threads that it starts later have what it has; so call it before
// there are others. No set-uid program gives anything back (no_new_privs), nobody but root may trace the
// process or read its /proc files, and it leaves no core file. Throws io.
void keep_only(std::span<const int> capabilities);

// Gives up all capabilities of the calling thread: for threads that read what strangers send. The others' are
// in the same memory: it keeps a mistaken call from being one of root's, not code that a stranger has brought
// in.
void drop_thread_capabilities() noexcept;

}  // namespace medes
