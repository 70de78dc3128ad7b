// Any bytes as a packed working set, of an image of any mappings: pages of that image come out, each once.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/error.h"
#include "restore/working_set.h"

using namespace medes;

namespace {

// The input's first bytes: of each mapping its size, gap to the last, kind, and whether it has a path.
ImageLayout layout_of(const uint8_t* data, size_t size) {
  ImageLayout layout;
  layout.processes.resize(1);
  uint64_t at = 0x10000;
  for (size_t i = 0; i + 2 <= size; i += 2) {
    Vma v;
    v.begin = at + data[i] % 4 * kPageBytes;
    v.end = v.begin + (1 + data[i] / 64) * kPageBytes;
    v.kind = static_cast<VmaKind>(data[i + 1] % 7);
    v.prot = data[i + 1] / 8 % 4;
    v.offset = data[i] / 4 % 4 * kPageBytes;
    if (data[i + 1] & 64) v.path = data[i + 1] & 128 ? "/a" : "/b";
    layout.runs.push_back({0, v.begin, layout.page_count, (v.end - v.begin) / kPageBytes});
    layout.page_count += layout.runs.back().count;
    at = v.end;
    layout.processes[0].vmas.push_back(std::move(v));
  }
  return layout;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kMappings = 8;
  const size_t head = std::min(size, kMappings);
  const ImageLayout layout = layout_of(data, head);
  const RegionIndex index(layout);
  std::vector<std::byte> packed(size - head);
  if (size > head) std::memcpy(packed.data(), data + head, size - head);
  // Keys that the image has, where an entry asks for one by its first byte.
  for (size_t i = 0; i + sizeof(WorkingSetEntry) <= packed.size() && layout.page_count > 0;
       i += sizeof(WorkingSetEntry)) {
    const auto choice = static_cast<uint8_t>(packed[i]);
    if (choice < 64) continue;
    const WorkingSetEntry own = index.entry_of(choice % layout.page_count);
    std::memcpy(packed.data() + i, &own.region_key, sizeof own.region_key);
  }
  try {
    const auto pages = index.pages_of(unpack_working_set(packed));
    std::vector<bool> seen(layout.page_count);
    for (const uint64_t page : pages) {
      if (page >= layout.page_count || seen[page]) __builtin_trap();
      seen[page] = true;
    }
  } catch (const Error& e) {
    if (e.code != Code::invalid_argument && e.code != Code::limit_exceeded) __builtin_trap();
  }
  return 0;
}
