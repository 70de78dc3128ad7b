// How every file of the store comes to be and is read back: written under a temporary name with all of its
// space allocated first (a full store is an error at creation, never a SIGBUS at a write), made read-only,
// then renamed without replacing anything. Nobody ever sees a half-written file under its final name. Files
// are opened relative to their folder, which is looked at each time and must be this user's alone: what lies
// in it is put into the memory of other processes.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "common/bytes.h"
#include "common/limits.h"
#include "common/unique_fd.h"

namespace medes {

// Whose folder a file may be opened in.
enum class Owners {
  us,      // this user's, of which nobody else has any right to (mode 0700), and the file is this user's
  anyone,  // for tools that only show what they find, and vouch for none of it
};

std::string folder_of(const std::string& path);

// Removes a file by its name in its folder. False: errno says why, ENOENT among others.
bool unlink_in_folder(const std::string& path) noexcept;

// A file being written. Dropping it uncommitted removes the temporary file.
class ShmFileWriter {
 public:
  // Allocates and maps `bytes`, which is > 0. Throws store_full, already_exists, permission_denied (the
  // folder is not this user's alone), io.
  ShmFileWriter(std::string path, uint64_t bytes);
  ~ShmFileWriter();
  ShmFileWriter(const ShmFileWriter&) = delete;
  ShmFileWriter& operator=(const ShmFileWriter&) = delete;

  MutableBytes bytes() { return {data_, static_cast<size_t>(size_)}; }
  // Renames to the final name. `mode` are the file's permission bits from then on. Throws already_exists, io.
  void commit(unsigned mode);

 private:
  void discard() noexcept;
  std::string path_, name_, temporary_;  // of which the last two are names in the folder
  UniqueFd folder_;
  uint64_t size_ = 0;
  int fd_ = -1;
  std::byte* data_ = nullptr;
};

// A shared mapping of part of a file.
class ShmMapping {
 public:
  ShmMapping() = default;
  // Maps [offset, offset + length) of an open descriptor; offset is a multiple of the page size.
  ShmMapping(int fd, uint64_t offset, uint64_t length, bool writable, const std::string& object);
  ~ShmMapping();
  ShmMapping(ShmMapping&& other) noexcept;
  ShmMapping& operator=(ShmMapping&& other) noexcept;

  Bytes bytes() const { return {data_, static_cast<size_t>(size_)}; }
  MutableBytes writable_bytes() { return {data_, static_cast<size_t>(size_)}; }

 private:
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

// A read or read-write descriptor of an existing regular file, never following a symbolic link.
class ShmFd {
 public:
  // Throws not_found, corrupt (not a regular file), permission_denied (not this user's alone), io.
  ShmFd(const std::string& path, bool writable, Owners owners = Owners::us);
  ~ShmFd();
  ShmFd(const ShmFd&) = delete;
  ShmFd& operator=(const ShmFd&) = delete;
  int get() const { return fd_; }
  uint64_t size() const { return size_; }

 private:
  int fd_ = -1;
  uint64_t size_ = 0;
};

// A copy of the header at the begin of a file that has at least a page: checked as a copy, since others may
// write.
template <typename Header>
Header read_header(const ShmFd& fd, const std::string& object) {
  static_assert(sizeof(Header) <= kPageBytes);
  Header header;
  const ShmMapping first(fd.get(), 0, kPageBytes, false, object);
  std::memcpy(&header, first.bytes().data(), sizeof header);
  return header;
}

inline constexpr uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

}  // namespace medes
