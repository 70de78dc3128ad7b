// A few bytes of another process's memory. False when not all of them are there.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace medes {

inline bool read_memory(pid_t pid, uint64_t address, void* out, size_t length) {
  const iovec local{out, length}, remote{reinterpret_cast<void*>(address), length};
  return process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(length);
}

inline bool write_memory(pid_t pid, uint64_t address, const void* data, size_t length) {
  const iovec local{const_cast<void*>(data), length}, remote{reinterpret_cast<void*>(address), length};
  return process_vm_writev(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(length);
}

}  // namespace medes
