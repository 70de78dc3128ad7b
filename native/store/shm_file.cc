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

std::string temporary_name(const std::string& name) {
  static std::atomic<uint64_t> counter{0};
  return name + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(counter.fetch_add(1));
}

std::string name_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

// A descriptor of a file's folder. The folders above it were looked at when the agent began
// (medes/folders.py).
UniqueFd open_folder(const std::string& path, Owners owners) {
  const std::string folder = folder_of(path);
  UniqueFd fd(::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd) throw errno_error(errno, "cannot open the store's folder", folder);
  if (owners == Owners::anyone) return fd;
  struct stat info;
  if (fstat(fd.get(), &info)) throw errno_error(errno, "cannot stat the store's folder", folder);
  if (info.st_uid != geteuid())
    throw Error(Code::permission_denied, "belongs to uid " + std::to_string(info.st_uid), folder,
                "its owner could replace what lies in it: use a folder of your own");
  if (info.st_mode & 077)
    throw Error(Code::permission_denied, "others have rights to it", folder,
                "if all in it is yours: chmod 700 " + folder);
  return fd;
}

constexpr const char* kFullHint = "purge sandboxes, or give the store more shared memory";

}  // namespace

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

bool unlink_in_folder(const std::string& path) noexcept {
  try {
    const UniqueFd folder = open_folder(path, Owners::anyone);
    return unlinkat(folder.get(), name_of(path).c_str(), 0) == 0;
  } catch (const Error&) {
    errno = ENOENT;
    return false;
  }
}

ShmFileWriter::ShmFileWriter(std::string path, uint64_t bytes) : path_(std::move(path)), size_(bytes) {
  if (bytes == 0) throw Error(Code::invalid_argument, "empty store file", path_);
  folder_ = open_folder(path_, Owners::us);
  name_ = name_of(path_);
  // Checked again, atomically, at commit; here it saves writing a file that cannot be kept.
  if (faccessat(folder_.get(), name_.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0)
    throw Error(Code::already_exists, "store file exists", path_);
  temporary_ = temporary_name(name_);
  fd_ = ::openat(folder_.get(), temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd_ < 0) throw errno_error(errno, "cannot create store file", path_);
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
    unlinkat(folder_.get(), temporary_.c_str(), 0);
  }
  fd_ = -1;
}

void ShmFileWriter::commit(unsigned mode) {
  if (fd_ < 0) throw Error(Code::internal, "store file committed twice", path_);
  if (fchmod(fd_, mode)) throw errno_error(errno, "cannot set mode of store file", path_);
  if (syscall(SYS_renameat2, folder_.get(), temporary_.c_str(), folder_.get(), name_.c_str(),
              RENAME_NOREPLACE)) {
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

ShmFd::ShmFd(const std::string& path, bool writable, Owners owners) {
  const UniqueFd folder = open_folder(path, owners);
  const int flags = (writable ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
  UniqueFd fd(::openat(folder.get(), name_of(path).c_str(), flags));
  if (!fd && errno == ELOOP) throw Error(Code::corrupt, "a symbolic link, not a store file", path);
  if (!fd) throw errno_error(errno, "cannot open store file", path);
  struct stat info;
  if (fstat(fd.get(), &info)) throw errno_error(errno, "cannot stat store file", path);
  if (!S_ISREG(info.st_mode)) throw Error(Code::corrupt, "not a regular file", path);
  if (owners == Owners::us && info.st_uid != geteuid())
    throw Error(Code::permission_denied, "belongs to uid " + std::to_string(info.st_uid), path,
                "its owner could change what is restored from it");
  size_ = static_cast<uint64_t>(info.st_size);
  fd_ = fd.release();
}

ShmFd::~ShmFd() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace medes
