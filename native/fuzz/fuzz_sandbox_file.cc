// Opening a sandbox file of arbitrary bytes: refused with an Error, or a file whose every accessor stays
// inside it. The header's and sections' checksums are made right, so that what lies behind them is reached.
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "common/checksum.h"
#include "fuzz/with_file.h"
#include "store/sandbox_format.h"

using namespace medes;

namespace {

// The checksum of a section that may well lie outside the file; 0 then.
uint64_t section_checksum(const std::vector<std::byte>& file, uint64_t offset, uint64_t length) {
  if (offset > file.size() || length > file.size() - offset) return 0;
  return checksum64(std::span(file).subspan(offset, length));
}

void mend(std::vector<std::byte>& file) {
  SandboxHeader h;
  if (file.size() < sizeof h) return;
  std::memcpy(&h, file.data(), sizeof h);
  h.magic = kSandboxMagic, h.version = kSandboxVersion, h.header_bytes = kPageBytes;
  h.file_bytes = file.size();
  h.meta_checksum = section_checksum(file, kPageBytes, h.meta_bytes);
  h.layout_checksum = section_checksum(file, h.layout_offset, h.layout_bytes);
  h.header_checksum =
      checksum64({reinterpret_cast<const std::byte*>(&h), offsetof(SandboxHeader, header_checksum)});
  std::memcpy(file.data(), &h, sizeof h);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Whole pages, as create() writes them; the input is the beginning.
  std::vector<std::byte> bytes(std::max<size_t>((size + kPageBytes - 1) / kPageBytes, 3) * kPageBytes);
  if (size != 0) std::memcpy(bytes.data(), data, size);
  if (size != 0 && data[size - 1] % 4 != 0) mend(bytes);
  fuzz::with_file("sandbox", bytes, [](const std::string& path) {
    const auto sandbox = SandboxFile::open(path);
    (void)checksum64(sandbox->meta());
    for (auto& state : sandbox->page_states()) state.store(0);
    for (auto& record : sandbox->uffds()) record.fd = -1;
  });
  return 0;
}
