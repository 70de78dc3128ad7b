// What the fuzz targets of files do with their input: written to shared memory, opened, removed.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <span>
#include <string>

#include "common/error.h"

namespace medes::fuzz {

// `use` gets the path; an Error of it is a refusal.
template <typename Use>
void with_file(const char* what, std::span<const std::byte> bytes, const Use& use) {
  const std::string path = std::string("/dev/shm/medes-fuzz-") + what + "-" + std::to_string(getpid());
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
