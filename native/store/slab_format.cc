#include "store/slab_format.h"

#include <cstring>

#include "common/checksum.h"
#include "common/error.h"
#include "store/shm_file.h"

namespace medes {

namespace {

uint64_t checksum_at(const SlabHeaderPage& page, size_t offset) {
  uint64_t value = 0;
  std::memcpy(&value, page.data() + offset, sizeof value);
  return value;
}

}  // namespace

uint64_t slab_pages_offset(uint64_t page_count) {
  return kPageBytes + round_up(page_count * sizeof(uint64_t), kPageBytes);
}

uint64_t slab_end_of_pages(const SlabHeader& header) {
  return header.pages_offset + header.page_count * kPageBytes;
}

// Where the header of a file says that its sections lie, each must lie there. What follows the fields that
// version 1 had is zero in one of that version.
SlabHeader checked_slab_header(const SlabHeaderPage& page, uint64_t file_bytes, const std::string& path) {
  auto require = [&](bool ok, const char* what) {
    if (!ok) throw Error(Code::corrupt, std::string("slab: ") + what, path);
  };
  SlabHeader h{};
  std::memcpy(&h, page.data(), sizeof h);
  require(h.magic == kSlabMagic, "wrong magic");
  const bool first = h.version == 1;
  const size_t checked = first ? kSlabV1HeaderBytes : kSlabChecksumOffset;
  require(checksum_at(page, checked) == checksum64(Bytes(page).first(checked)), "header checksum");
  if (first) std::memset(&h.readable_from, 0, sizeof h - kSlabV1HeaderBytes);
  if (h.version == 0 || h.readable_from > kSlabVersion)
    throw Error(Code::unsupported, "slab: version " + std::to_string(h.version) + " needs a newer Medes",
                path);
  require(h.header_bytes == kPageBytes, "header length");
  require(h.page_count >= 1 && h.page_count <= kMaxBasePages, "page count");
  require(h.pages_offset == slab_pages_offset(h.page_count), "pages offset");
  require(h.file_bytes == file_bytes && h.file_bytes >= slab_end_of_pages(h), "file length");
  require(h.version != 1 || h.file_bytes == slab_end_of_pages(h), "file length");
  require(h.range_count <= kMaxRanges && h.value_only <= 1, "address ranges");
  for (uint32_t i = 0; i < h.range_count; ++i) {
    require(h.ranges[i].begin < h.ranges[i].end, "empty address range");
    require(i == 0 || h.ranges[i - 1].end <= h.ranges[i].begin, "address ranges out of order");
  }
  require(h.section_count <= kSlabSections, "section count");
  for (uint32_t i = 0; i < h.section_count; ++i) {
    const SlabSection& section = h.sections[i];
    require(section.offset >= slab_end_of_pages(h) && section.offset <= file_bytes &&
                section.bytes <= file_bytes - section.offset,
            "section outside the file");
    if (section.required && section.kind != static_cast<uint32_t>(SlabSectionKind::meta))
      throw Error(Code::unsupported, "slab: a section that this version does not know must be read", path);
  }
  return h;
}

Bytes checked_slab_sections(const SlabHeader& header, Bytes file, const std::string& path) {
  if (checksum64(file.subspan(kPageBytes, header.page_count * sizeof(uint64_t))) != header.table_checksum)
    throw Error(Code::corrupt, "slab: checksum of the page checksums", path);
  Bytes meta;
  for (uint32_t i = 0; i < header.section_count; ++i) {
    const SlabSection& section = header.sections[i];
    if (section.kind != static_cast<uint32_t>(SlabSectionKind::meta)) continue;  // of a newer version
    meta = file.subspan(section.offset, section.bytes);
    if (checksum64(meta) != section.checksum)
      throw Error(Code::corrupt, "slab: checksum of the meta section", path);
  }
  return meta;
}

}  // namespace medes
