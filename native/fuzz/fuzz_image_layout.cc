// Any bytes as an image layout: parsed or refused as corrupt, and what parses serialises to something that
// parses to the same. Magic, version and checksum are made right (but for an input that ends in a multiple of
// four), so that what lies behind them is reached.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/checksum.h"
#include "common/error.h"
#include "image/image.h"

using namespace medes;

namespace {

void mend(std::vector<std::byte>& layout) {
  struct Begin {
    uint32_t magic, version;
    uint64_t checksum;
  };
  if (layout.size() < sizeof(Begin)) return;
  const Begin begin{0x544c444d, 1, checksum64(Bytes(layout).subspan(sizeof(Begin)))};
  std::memcpy(layout.data(), &begin, sizeof begin);
}

void look_up(const ImageLayout& layout) {
  const uint64_t pages = std::min<uint64_t>(layout.page_count, 8);
  for (uint64_t page = 0; page < pages; ++page) {
    (void)layout.adjacent(page);
    const PageRun& run = layout.run_of(page);
    if (layout.find(run.process, run.address + (page - run.first_page) * kPageBytes) != page)
      __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> input(size);
  if (size != 0) std::memcpy(input.data(), data, size);
  if (size != 0 && data[size - 1] % 4 != 0) mend(input);
  try {
    const ImageLayout layout = ImageLayout::parse(input);
    look_up(layout);
    const auto again = ImageLayout::parse(layout.serialise());
    if (again.page_count != layout.page_count || again.runs.size() != layout.runs.size()) __builtin_trap();
  } catch (const Error& e) {
    if (e.code != Code::corrupt && e.code != Code::unsupported && e.code != Code::limit_exceeded)
      __builtin_trap();
  }
  return 0;
}
