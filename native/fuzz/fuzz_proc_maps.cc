// Any text as a process's maps and smaps: mappings come out ascending, or it is refused.
#include <cstdint>
#include <string>
#include <vector>

#include "common/error.h"
#include "procfs/proc.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)flagged_ranges(text, "lo");
  try {
    std::vector<ProcessLayout> processes(1);
    processes[0].vmas = parse_maps(text);
    uint64_t last = 0;
    for (const Vma& v : processes[0].vmas) {
      if (v.begin < last || v.end <= v.begin) __builtin_trap();
      last = v.end;
    }
    if (space_of(processes).ranges.size() > kMaxRanges) __builtin_trap();
  } catch (const Error& e) {
    if (e.code != Code::corrupt) __builtin_trap();
  }
  return 0;
}
