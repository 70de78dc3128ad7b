// A slab file of arbitrary bytes: refused as corrupt or unsupported, or one whose every part lies inside it.
// The input is the header's beginning and what lies behind its page. Magic, lengths and checksums are made
// right (but where the last byte says otherwise), so that what lies behind them is reached.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/checksum.h"
#include "common/error.h"
#include "store/slab_format.h"

using namespace medes;

namespace {

// The checksum of a part that may well lie outside the file; 0 then.
uint64_t checksum_of(Bytes file, uint64_t offset, uint64_t length) {
  if (offset > file.size() || length > file.size() - offset) return 0;
  return checksum64(file.subspan(offset, length));
}

void mend(std::vector<std::byte>& file, uint8_t how) {
  SlabHeader h;
  std::memcpy(&h, file.data(), sizeof h);
  h.magic = kSlabMagic, h.header_bytes = kPageBytes;
  if (how & 1) h.page_count = (file.size() - kPageBytes) / kPageBytes - 1;
  if (how & 2) h.pages_offset = slab_pages_offset(h.page_count);
  h.file_bytes = file.size();
  if (h.page_count <= file.size() / sizeof(uint64_t))
    h.table_checksum = checksum_of(file, kPageBytes, h.page_count * sizeof(uint64_t));
  for (auto& section : h.sections) section.checksum = checksum_of(file, section.offset, section.bytes);
  std::memcpy(file.data(), &h, sizeof h);
  const size_t end = h.version == 1 ? kSlabV1HeaderBytes : kSlabChecksumOffset;
  const uint64_t checksum = checksum64(Bytes(file).first(end));
  std::memcpy(file.data() + end, &checksum, sizeof checksum);
}

void open(Bytes file) {
  SlabHeaderPage page;
  std::memcpy(page.data(), file.data(), page.size());
  const SlabHeader header = checked_slab_header(page, file.size(), "slab");
  const Bytes meta = checked_slab_sections(header, file, "slab");
  if (!meta.empty() && (meta.data() < file.data() + slab_end_of_pages(header) ||
                        meta.data() + meta.size() > file.data() + file.size()))
    __builtin_trap();
  const Bytes pages = file.subspan(header.pages_offset, header.page_count * kPageBytes);
  if (pages.size() / kPageBytes != header.page_count) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kTypical = 3 * kPageBytes;  // a page, and room for a section
  const size_t head = std::min(size, sizeof(SlabHeader));
  static std::vector<std::byte> file;
  file.assign(std::max((kPageBytes + size - head + kPageBytes - 1) / kPageBytes * kPageBytes, kTypical) +
                  (size != 0 && data[size - 1] % 8 == 7 ? kPageBytes : 0),
              std::byte{0});
  if (size != 0) std::memcpy(file.data(), data, head);
  if (size > head) std::memcpy(file.data() + kPageBytes, data + head, size - head);
  if (size != 0 && data[size - 1] % 16 != 0) mend(file, data[size - 1] / 16);
  try {
    open(file);
  } catch (const Error& e) {
    if (e.code != Code::corrupt && e.code != Code::unsupported) __builtin_trap();
  }
  return 0;
}
