// Any answers of a registry: locations in range are merged, others left out, and windows planned from them
// name bases that there are. And any fingerprints of a node: looked up they give places that exist.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "codec/window_plan.h"
#include "common/error.h"
#include "registry/fingerprint_index.h"
#include "registry/locations.h"

using namespace medes;

namespace {

constexpr uint32_t kSamples = 2;
constexpr uint64_t kPages = 4;

struct Input {
  const uint8_t* data;
  size_t left;
  uint8_t byte() { return left == 0 ? 0 : (--left, *data++); }
  // A word that is nearly right, or any.
  uint64_t location() {
    const uint8_t how = byte();
    if (how < 200) return pack_location(how % 4, byte() % 8, byte());
    uint64_t word = ~0ull;
    for (int i = 0; i < 8 && how < 250; ++i) word = word << 8 | byte();
    return word;
  }
};

void check(const Locations& locations) {
  for (const uint64_t place : locations.packed())
    if (place != kNoLocation && unpack_location(place).slot >= locations.base_ids().size()) __builtin_trap();
}

void answer(Input& in) {
  std::vector<uint64_t> bases(in.byte() % 4), pages(in.byte() % (kPages + 1));
  for (auto& base : bases) base = in.byte();
  for (auto& page : pages) page = in.byte() % (kPages + 1);
  Fingerprints prints{kPages, kSamples, std::vector<uint64_t>(kPages * kSamples),
                      std::vector<uint8_t>(kPages * kSamples)};
  for (auto& hash : prints.hashes) hash = in.byte() % 4;
  for (auto& position : prints.positions) position = in.byte();
  Locations locations(kPages, kSamples);
  for (int round = 0; round < 2; ++round) {
    std::vector<uint64_t> packed(pages.size() * kSamples * kMaxLocations + (in.byte() == 255 ? 1 : 0));
    for (auto& place : packed) place = in.location();
    locations.merge(packed, bases, pages);
    check(locations);
  }
  for (const uint64_t page : locations.open_pages(prints.hashes, 2))
    if (page >= kPages) __builtin_trap();
  const WindowPlan plan = plan_windows(kPages, prints, locations);
  for (uint64_t page = 0; page < kPages; ++page)
    for (const uint64_t window : plan.windows(page))
      if (window != kNoWindow && window_slot(window) >= plan.base_ids().size()) __builtin_trap();
}

void index(Input& in) {
  static FingerprintIndex index;
  std::vector<uint64_t> hashes(in.byte() % 16);
  std::vector<uint8_t> positions(hashes.size() + (in.byte() == 255 ? 1 : 0));
  for (auto& hash : hashes) hash = in.byte() * 0x0101010101010101ull;
  for (auto& position : positions) position = in.byte();
  const uint32_t k = in.byte() % (kMaxSamples + 2);
  try {
    index.insert(7, hashes, positions, k);
    const Locations found = index.lookup(hashes, k);
    check(found);
  } catch (const Error& e) {
    (void)index.retire(7);
    throw;
  }
  if (!index.retire(7) || index.stats().hashes != 0) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in{data, size};
  try {
    if (in.byte() % 2 == 0)
      answer(in);
    else
      index(in);
  } catch (const Error& e) {
    if (e.code != Code::invalid_argument && e.code != Code::limit_exceeded) __builtin_trap();
  }
  return 0;
}
