#include "store/shm_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

namespace medes {

namespace {

std::string temporary_name(const std::string& path) {
  static std::atomic<uint64_t> counter{0};
  return path + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(counter.fetch_add(1));
}

constexpr const char* kFullHint = "purge sandboxes, or give the store more shared memory";

}  // namespace

ShmFileWriter::ShmFileWriter(std::string path, uint64_t bytes) : path_(std::move(path)), size_(bytes) {
  if (bytes == 0) throw Error(Code::invalid_argument, "empty store file", path_);
  // Checked again, atomically, at commit; here it saves writing a file that cannot be kept.
  if (access(path_.c_str(), F_OK) == 0) throw Error(Code::already_exists, "store file exists", path_);
  temporary_ = temporary_name(path_);
  fd_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd_ < 0) throw errno_error(errno, "cannot create store file", temporary_);
  int failed = 0;
  do {
    failed = fallocate(fd_, 0, 0, static_cast<off_t>(size_)) ? errno : 0;
  } while (failed == EINTR);
  if (failed) {
    discard();
    if (failed == ENOSPC || failed == ENOMEM || failed == EDQUOT || failed == EFBIG)
      throw Error(Code::store_full, "no room for " + std::to_string(size_) + " bytes", path_, kFullHint);
    throw errno_error(failed, "cannot allocate store file", path_);
  }
  void* mapped = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (mapped == MAP_FAILED) {
    const int err = errno;
    discard();
    throw errno_error(err, "cannot map store file", path_);
  }
  data_ = static_cast<std::byte*>(mapped);
}

ShmFileWriter::~ShmFileWriter() { discard(); }

void ShmFileWriter::discard() noexcept {
  if (data_) munmap(data_, size_);
  data_ = nullptr;
  if (fd_ >= 0) {
    close(fd_);
    unlink(temporary_.c_str());
  }
  fd_ = -1;
}

void ShmFileWriter::commit(unsigned mode) {
  if (fd_ < 0) throw Error(Code::internal, "store file committed twice", path_);
  if (fchmod(fd_, mode)) throw errno_error(errno, "cannot set mode of store file", path_);
  if (syscall(SYS_renameat2, AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE)) {
    const int err = errno;
    if (err == EEXIST) throw Error(Code::already_exists, "store file exists", path_);
    throw errno_error(err, "cannot rename store file", path_);
  }
  munmap(data_, size_);
  data_ = nullptr;
  close(fd_);
  fd_ = -1;
}

ShmMapping::ShmMapping(int fd, uint64_t offset, uint64_t length, bool writable, const std::string& object)
    : size_(length) {
  if (length == 0) return;
  void* mapped = mmap(nullptr, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
                      static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) throw errno_error(errno, "cannot map store file", object);
  data_ = static_cast<std::byte*>(mapped);
}

ShmMapping::~ShmMapping() {
  if (data_) munmap(data_, size_);
}

ShmMapping::ShmMapping(ShmMapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

ShmMapping& ShmMapping::operator=(ShmMapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

ShmFd::ShmFd(const std::string& path, bool writable) {
  fd_ = ::open(path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) throw errno_error(errno, "cannot open store file", path);
  struct stat info;
  if (fstat(fd_, &info)) {
    const int err = errno;
    close(fd_);
    throw errno_error(err, "cannot stat store file", path);
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd_);
    throw Error(Code::corrupt, "not a regular file", path);
  }
  size_ = static_cast<uint64_t>(info.st_size);
}

ShmFd::~ShmFd() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace medes
