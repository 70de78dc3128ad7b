// Another process's memory, read and written without waiting for anybody: what is missing and guarded by a
// userfaultfd, the program's own included, is not there. process_vm_readv and process_vm_writev would wait
// for the handler, however long that takes.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "common/unique_fd.h"

namespace medes {

class ForeignMemory {
 public:
  enum class For : uint8_t { reading, writing };
  explicit ForeignMemory(pid_t pid, For what = For::reading);
  bool is_open() const { return static_cast<bool>(mem_); }
  // How many bytes could be read before the first one that is not there. -1 with errno: ESRCH when the
  // process has no memory (any more), EACCES.
  ssize_t read(uint64_t address, void* out, size_t length) const;
  ssize_t write(uint64_t address, const void* data, size_t length) const;  // the same

 private:
  template <typename Move>
  ssize_t all_of(size_t length, Move move) const;

  pid_t pid_;
  UniqueFd mem_;
  int error_ = 0;
};

}  // namespace medes
