// Opening a slab file of arbitrary bytes: refused with an Error, or a slab whose every accessor stays inside
// it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/error.h"
#include "store/slab.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/medes-fuzz-slab-" + std::to_string(getpid());
  FILE* file = fopen(path.c_str(), "wb");
  if (!file) return 0;
  const bool written = fwrite(data, 1, size, file) == size;
  fclose(file);
  if (written) {
    try {
      const auto slab = Slab::open(path);
      slab->verify(0, slab->page_count());
      if (slab->bytes().size() != slab->page_count() * 4096) __builtin_trap();
    } catch (const Error&) {
    }
  }
  unlink(path.c_str());
  return 0;
}
