// Any bytes as the first page of a program, read from a process's memory: what it says of writable segments
// are whole pages of a file.
#include <elf.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "procfs/program_data.h"

using namespace medes;

// What tells a 64-bit program is made right, but where the last byte says otherwise.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::array<std::byte, kPageBytes> page{};
  std::memcpy(page.data(), data, std::min(size, page.size()));
  if (data[size - 1] % 8 != 0) {
    const unsigned char begin[] = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB};
    std::memcpy(page.data(), begin, sizeof begin);
    const uint16_t entry = sizeof(Elf64_Phdr);
    std::memcpy(page.data() + offsetof(Elf64_Ehdr, e_phentsize), &entry, sizeof entry);
  }
  for (const AddressRange& r : writable_segments(page))
    if (r.begin > r.end || r.begin % kPageBytes != 0 || r.end % kPageBytes != 0) __builtin_trap();
  return 0;
}
