// A few bytes of another process's memory. False when not all of them are there.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "image/foreign_memory.h"

namespace medes {

inline bool read_memory(pid_t pid, uint64_t address, void* out, size_t length) {
  return ForeignMemory(pid).read(address, out, length) == static_cast<ssize_t>(length);
}

// To memory of ours in the process: it is written whatever the program has made of its protection.
inline bool write_memory(pid_t pid, uint64_t address, const void* data, size_t length) {
  return ForeignMemory(pid, ForeignMemory::For::writing).write(address, data, length) ==
         static_cast<ssize_t>(length);
}

// To memory of the program's, which stands still, if the program itself could write there.
inline bool write_as_program(pid_t pid, uint64_t address, const void* data, size_t length) {
  std::byte there[64];
  if (length > sizeof there || !read_memory(pid, address, there, length)) return false;  // nor waits
  const iovec local{const_cast<void*>(data), length}, remote{reinterpret_cast<void*>(address), length};
  return process_vm_writev(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(length);
}

}  // namespace medes
