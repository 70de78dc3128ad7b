// Any text as a thread's status, syscall and sched, and as the fdinfo of its descriptors.
#include <cstdint>
#include <string>
#include <vector>

#include "procfs/proc_text.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)field_of(text, "VmLck");
  (void)field_of(text, "SigCgt", 16);
  if (const auto call = parse_syscall(text); call && call->number < 0) __builtin_trap();
  if (const SchedTimes times = parse_sched(text); times.exec_start_ns && *times.exec_start_ns < 0)
    __builtin_trap();
  std::vector<AddressRange> buffers;
  append_registered_buffers(text, buffers);
  for (const AddressRange& b : buffers)
    if (b.begin >= b.end || b.begin % kPageBytes != 0 || b.end % kPageBytes != 0) __builtin_trap();
  (void)pending_of(text);
  return 0;
}
