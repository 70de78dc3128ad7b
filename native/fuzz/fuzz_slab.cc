// Opening a slab file of arbitrary bytes: refused with an Error, or a slab whose every accessor stays inside
// it.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "fuzz/with_file.h"
#include "store/slab.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::with_file("slab", std::as_bytes(std::span(data, size)), [](const std::string& path) {
    const auto slab = Slab::open(path);
    slab->verify(0, slab->page_count());
    if (slab->bytes().size() != slab->page_count() * 4096) __builtin_trap();
  });
  return 0;
}
