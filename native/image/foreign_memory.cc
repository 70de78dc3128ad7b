#include "image/foreign_memory.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace medes {
namespace {

using Call = ssize_t (*)(pid_t, const iovec*, unsigned long, const iovec*, unsigned long, unsigned long);

ssize_t by(Call call, pid_t pid, uint64_t address, void* own, size_t length) {
  const iovec local{own, length}, remote{reinterpret_cast<void*>(address), length};
  const ssize_t n = call(pid, &local, 1, &remote, 1, 0);
  return n < 0 && errno == EFAULT ? 0 : n;
}

}  // namespace

ForeignMemory::ForeignMemory(pid_t pid, For what)
    : pid_(pid),
      mem_(open(("/proc/" + std::to_string(pid) + "/mem").c_str(),
                (what == For::reading ? O_RDONLY : O_WRONLY) | O_CLOEXEC)) {
  if (!mem_) error_ = errno == ENOENT ? ESRCH : errno;
}

// `move`(done) is one call of the kernel for what is left.
template <typename Move>
ssize_t ForeignMemory::all_of(size_t length, Move move) const {
  for (size_t done = 0; done < length;) {
    const ssize_t n = move(done);
    if (n > 0)
      done += static_cast<size_t>(n);
    else if (n < 0 && errno == EIO)
      return static_cast<ssize_t>(done);
    else if (n == 0 && done > 0)
      return static_cast<ssize_t>(done);
    else if (n == 0)
      errno = ESRCH;  // the memory that this descriptor stands for has gone
    if (n == 0 || (n < 0 && errno != EINTR)) return -1;
  }
  return static_cast<ssize_t>(length);
}

ssize_t ForeignMemory::read(uint64_t address, void* out, size_t length) const {
  // Without a descriptor left it is still better to look than to take memory for missing.
  if (error_ == EMFILE || error_ == ENFILE) return by(process_vm_readv, pid_, address, out, length);
  errno = error_;
  if (!mem_) return -1;
  return all_of(length, [&](size_t done) {
    return pread(mem_.get(), static_cast<char*>(out) + done, length - done,
                 static_cast<off_t>(address + done));
  });
}

ssize_t ForeignMemory::write(uint64_t address, const void* data, size_t length) const {
  if (error_ == EMFILE || error_ == ENFILE)
    return by(process_vm_writev, pid_, address, const_cast<void*>(data), length);
  errno = error_;
  if (!mem_) return -1;
  return all_of(length, [&](size_t done) {
    return pwrite(mem_.get(), static_cast<const char*>(data) + done, length - done,
                  static_cast<off_t>(address + done));
  });
}

}  // namespace medes
