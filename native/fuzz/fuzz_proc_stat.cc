// Any text as a process's stat: understood, or refused as corrupt. The name in it may hold anything.
#include <cstdint>
#include <string_view>

#include "common/error.h"
#include "procfs/proc_text.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const ProcessStat stat = parse_stat(text, "pid 1");
    if (stat.processor < -1 || stat.state == ' ') __builtin_trap();
  } catch (const Error& e) {
    if (e.code != Code::corrupt) __builtin_trap();
  }
  return 0;
}
