// Holds the agent's descriptors beyond its death.
//
// The userfaultfd of a process of the layout is open in that process too, which may close it. That of a child
// forked while pages are missing is not: the kernel gives it to whoever reads the fork event. With the last
// copy of one the missing pages would read as zeros. So a second, tiny process shares the
// agent's table of descriptors (clone with CLONE_FILES, and nothing else): what a read puts into the table is
// the keeper's in the same instant. It sleeps while the agent lives. When the agent dies it closes everything
// but such userfaultfds, and ends when none is left: each goes when an agent has taken it over and says so (a
// signal with the descriptor's number), or when its memory is gone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "common/unique_fd.h"
#include "store/child_file.h"

namespace medes {

namespace keeper {

// Starts this process's keeper unless it runs already. Throws io.
void start();
// Where `fd` of this process's table is held; it need not be open. A keeper that was killed is started anew.
Holder holder_of(int fd);
bool alive(const Holder& holder);
// The same of one that a record names by these two, if it lives; else nobody. Throws as take().
Holder holder_of(int32_t pid, int32_t fd);
// A copy of the userfaultfd there; empty when it is not there any more. `inode` 0: whichever it is. Throws
// when that cannot be told now: permission_denied, io, limit_exceeded.
UniqueFd take(const Holder& holder, uint64_t inode = 0);
// Nobody needs it there any more.
void release(const Holder& holder, uint64_t inode);

// While it lives, the keeper says in `file` (store/child_file.h) when the memory of userfaultfd `fd` has gone
// after the agent: otherwise nobody could tell a keeper that had nothing left to keep from one that was
// killed.
class ToldWhenGone {
 public:
  ToldWhenGone() = default;
  ToldWhenGone(int fd, int file);
  ~ToldWhenGone() { end(); }
  ToldWhenGone(ToldWhenGone&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), file_(std::exchange(other.file_, -1)) {}
  ToldWhenGone& operator=(ToldWhenGone&& other) noexcept;

 private:
  void end() noexcept;
  int fd_ = -1, file_ = -1;
};

// Stays open, in this process's table, for a later take() by whoever it may be. `file` is empty for one that
// is not a forked child's.
void leave_open(UniqueFd fd, std::shared_ptr<ChildFile> file, ToldWhenGone told);

// Closes what was left open of processes that have ended since.
void release_gone();

}  // namespace keeper

}  // namespace medes
