#include "store/sandbox_format.h"

#include <cstring>

#include "common/checksum.h"
#include "common/error.h"

namespace medes {

namespace {

uint64_t changes_offset(uint64_t process_count) { return round_up(process_count * sizeof(UffdRecord), 64); }
uint64_t states_offset(uint64_t process_count) {
  return round_up(changes_offset(process_count) + process_count * sizeof(ChangeRecord), 64);
}

}  // namespace

uint64_t sandbox_header_checksum(const SandboxHeader& header) {
  return checksum64({reinterpret_cast<const std::byte*>(&header), offsetof(SandboxHeader, header_checksum)});
}

void set_sandbox_offsets(SandboxHeader& h) {
  h.layout_offset = round_up(kPageBytes + h.meta_bytes, 64);
  h.encoded_offset = round_up(h.layout_offset + h.layout_bytes, kPageBytes);
  h.mutable_offset = round_up(h.encoded_offset + h.encoded_bytes, kPageBytes);
  h.file_bytes = h.mutable_offset + round_up(states_offset(h.process_count) + h.page_count, kPageBytes);
}

void check_sandbox_header(const SandboxHeader& h, uint64_t file_bytes, const std::string& path) {
  auto require = [&](bool ok, const char* what) {
    if (!ok) throw Error(Code::corrupt, std::string("sandbox file: ") + what, path);
  };
  require(h.magic == kSandboxMagic, "wrong magic");
  if (h.version < kSandboxVersionOldest || h.version > kSandboxVersion)
    throw Error(Code::unsupported,
                "sandbox file: version " + std::to_string(h.version) + " is not known here", path);
  require(h.header_checksum == sandbox_header_checksum(h), "header checksum");
  require(h.header_bytes == kPageBytes, "header length");
  require(h.page_count <= kMaxImagePages, "page count");
  require(h.process_count <= kMaxProcesses, "process count");
  // No section is longer than the file: the sums of the offsets cannot overflow.
  require(h.meta_bytes <= file_bytes && h.layout_bytes <= file_bytes && h.encoded_bytes <= file_bytes,
          "section lengths");
  SandboxHeader derived = h;
  set_sandbox_offsets(derived);
  require(std::memcmp(&derived, &h, sizeof h) == 0, "section offsets");
  require(h.file_bytes == file_bytes, "file length");
}

SandboxSections parse_sandbox_sections(const SandboxHeader& h, Bytes fixed, const std::string& path,
                                       const StoreKey* key) {
  const Bytes meta = fixed.subspan(kPageBytes, h.meta_bytes);
  if (checksum64(meta) != h.meta_checksum)
    throw Error(Code::corrupt, "sandbox file: checksum of the meta section", path);
  const Bytes layout = fixed.subspan(h.layout_offset, h.layout_bytes);
  if (checksum64(layout) != h.layout_checksum)
    throw Error(Code::corrupt, "sandbox file: checksum of the image layout", path);
  SandboxSections out{meta, ImageLayout::parse(layout),
                      EncodedImage::open(fixed.subspan(h.encoded_offset, h.encoded_bytes), key)};
  if (out.layout.page_count != h.page_count || out.layout.processes.size() != h.process_count ||
      out.encoded.page_count() != h.page_count)
    throw Error(Code::corrupt, "sandbox file: sections disagree on the image's size", path);
  return out;
}

SandboxFileState sandbox_file_state(const SandboxHeader& h, MutableBytes changing) {
  std::byte* const begin = changing.data();
  return {{reinterpret_cast<UffdRecord*>(begin), h.process_count},
          {reinterpret_cast<ChangeRecord*>(begin + changes_offset(h.process_count)), h.process_count},
          {reinterpret_cast<std::atomic<uint8_t>*>(begin + states_offset(h.process_count)), h.page_count}};
}

}  // namespace medes
