// What the fuzz targets of files do with their input: written to shared memory, opened, removed.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>

#include "common/error.h"

namespace medes::fuzz {

// The process's own: files are opened in no other.
struct Folder {
  Folder() { path = mkdtemp(path.data()) == nullptr ? "" : path; }
  ~Folder() { rmdir(path.c_str()); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string path = "/dev/shm/medes-fuzz-XXXXXX";
};

// `use` gets the path; an Error of it is a refusal.
template <typename Use>
void with_file(const char* what, std::span<const std::byte> bytes, const Use& use) {
  static const Folder folder;
  const std::string path = folder.path + "/" + what;
  FILE* const file = fopen(path.c_str(), "wb");
  if (file == nullptr) return;
  const bool written = fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  fclose(file);
  if (written) {
    try {
      use(path);
    } catch (const Error&) {
    }
  }
  unlink(path.c_str());
}

}  // namespace medes::fuzz
