// Any calls of a program on its mappings, one set after the other: what the image says of addresses stays in
// order, no page of it is in two places, and what is unwanted was there before.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "serving/mapping_change.h"

using namespace medes;

namespace {

constexpr uint64_t kImagePages = 32;

void check(const Segments& segments) {
  std::vector<bool> seen(kImagePages);
  uint64_t last = 0;
  for (const Segment& s : segments.all()) {
    if (s.begin < last || s.end <= s.begin || s.origin + (s.end - s.begin) > kImagePages * kPageBytes)
      __builtin_trap();
    last = s.end;
    for (uint64_t page = s.origin / kPageBytes; page < (s.origin + s.end - s.begin) / kPageBytes; ++page) {
      if (seen[page]) __builtin_trap();
      seen[page] = true;
    }
    const auto place = segments.place_of(s.origin);
    if (place.address != s.begin || place.bytes != s.end - s.begin || segments.origin_of(s.begin) != s.origin)
      __builtin_trap();
  }
}

}  // namespace

// The input: four bytes a change (kind, and whether a set ends with it; begin, length and target in pages).
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Segments segments;
  segments.add(0, kImagePages * kPageBytes, 0);
  std::vector<MappingChange> set;
  for (size_t i = 0; i + 4 <= size; i += 4) {
    const uint64_t begin = data[i + 1] % 64 * kPageBytes, bytes = (1 + data[i + 2] % 16) * kPageBytes;
    set.push_back(
        {static_cast<MappingChange::Kind>(data[i] % 3), begin, begin + bytes, data[i + 3] % 64 * kPageBytes});
    if (data[i] < 128) continue;
    (void)independent(set);
    const auto had =
        inherited(segments, set, [&](uint64_t address) { return address / kPageBytes % 3 != 0; });
    if (had.size() > set.size()) __builtin_trap();
    const Segments before = segments;
    const Applied applied = apply_together(segments, set);
    for (const AddressRange& r : applied.unwanted)
      if (r.begin >= r.end || before.place_of(r.begin).bytes == 0) __builtin_trap();
    check(segments);
    set.clear();
  }
  return 0;
}
