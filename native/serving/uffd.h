// A userfaultfd of a sandbox process: a thin wrapper over its calls. The descriptor was made inside the
// process (it belongs to that process's memory); this is the agent's own copy. Thread-safe: the kernel
// serialises what must be.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>

#include "common/bytes.h"
#include "common/error.h"
#include "common/unique_fd.h"

namespace medes {

enum class UffdResult : uint8_t {
  ok,
  exists,     // the first page was there already
  again,      // events wait to be read, or the mapping changes: read events, then try again
  unmapped,   // no registered mapping at that address (any more)
  gone,       // the process's memory is gone
  no_memory,  // its memory cgroup, or the machine, has no page left
  failed,
};

class Uffd {
 public:
  Uffd() = default;
  explicit Uffd(UniqueFd fd) : fd_(std::move(fd)) {}
  // A copy of that of process `pid`, which keeps its own; throws as take_descriptor.
  static Uffd of_process(pid_t pid, int fd);
  int fd() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }
  void close() {
    info_.reset();
    fd_.reset();
  }
  UniqueFd release() {  // the descriptor itself
    info_.reset();
    return std::move(fd_);
  }

  // The handshake that switches on the events of this driver. False when it was done before.
  bool enable();  // throws unsupported, permission_denied, io

  int register_missing(uint64_t begin, uint64_t end) const;  // 0 or errno
  int unregister(uint64_t begin, uint64_t end) const;        // 0 or errno

  // Copies `count` pages; `done` gets how many are in place. Wakes waiters.
  UffdResult copy(uint64_t address, const std::byte* from, uint64_t count, uint64_t& done) const;
  UffdResult zero(uint64_t address, uint64_t count, uint64_t& done) const;
  void wake(uint64_t address, uint64_t count) const;

  // Reads what is queued, never blocks; returns the number of messages. Faults come before other events.
  size_t read_events(std::span<uffd_msg> out) const;
  std::optional<size_t> pending_faults();  // that wait to be read; nothing when the kernel does not say
  // A thread is between entering a call that changes mappings and having had its event read.
  bool changing() const;
  bool memory_gone() const;
  // Whether the address lies in a registered mapping; nothing is placed. `changing` hides it (again).
  UffdResult look(uint64_t address) const;

  uint64_t inode() const;  // tells this userfaultfd from others of the process; 0 if unknown

 private:
  UniqueFd fd_;
  UniqueFd info_;  // its file in /proc/self/fdinfo
};

// Takes a copy of descriptor `fd` of process `pid`. Throws process_gone, not_found, permission_denied.
UniqueFd take_descriptor(pid_t pid, int fd);

}  // namespace medes
