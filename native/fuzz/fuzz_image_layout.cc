// Any bytes as an image layout: parsed or refused as corrupt, and what parses serialises to something that
// parses.
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/error.h"
#include "memory/image.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> input(size);
  if (size != 0) std::memcpy(input.data(), data, size);
  try {
    const medes::ImageLayout layout = medes::ImageLayout::parse(input);
    for (uint64_t page = 0; page < layout.page_count && page < 1000; ++page) (void)layout.adjacent(page);
    const auto again = medes::ImageLayout::parse(layout.serialise());
    if (again.page_count != layout.page_count || again.runs.size() != layout.runs.size()) __builtin_trap();
  } catch (const medes::Error& e) {
    if (e.code != medes::Code::corrupt && e.code != medes::Code::unsupported &&
        e.code != medes::Code::limit_exceeded)
      __builtin_trap();
  }
  return 0;
}
