// A sandbox file of arbitrary bytes: refused, or one whose every part lies inside it. The input is the
// header's beginning and the sections, one behind the other; they are put where the lengths say that they
// are. Magic, offsets and checksums are made right (but where the last byte says otherwise), so that what
// lies behind them is reached.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/checksum.h"
#include "common/error.h"
#include "store/sandbox_format.h"

using namespace medes;

namespace {

constexpr uint64_t kFileMax = 16 * kPageBytes;

// Takes what it is asked for from the input, as far as that goes.
uint64_t place(std::vector<std::byte>& file, uint64_t offset, uint64_t length, Bytes& input) {
  if (offset > file.size() || length > file.size() - offset) return 0;
  const size_t n = std::min<size_t>(length, input.size());
  if (n != 0) std::memcpy(file.data() + offset, input.data(), n);
  input = input.subspan(n);
  return checksum64(Bytes(file).subspan(offset, length));
}

// A file of the header's lengths, cut to a size that is quickly made; as it stands where not `mended`.
std::vector<std::byte>& file_of(Bytes input, bool mended) {
  static std::vector<std::byte> file;
  SandboxHeader h{};
  const size_t head = std::min(input.size(), sizeof h);
  if (head != 0) std::memcpy(&h, input.data(), head);
  input = input.subspan(head);
  if (mended) {
    h.magic = kSandboxMagic, h.version = kSandboxVersion, h.header_bytes = kPageBytes;
    h.meta_bytes %= 256, h.layout_bytes %= 1024, h.encoded_bytes %= 2 * kPageBytes;
    set_sandbox_offsets(h);
  }
  file.assign(std::clamp<uint64_t>(h.file_bytes / kPageBytes * kPageBytes, kPageBytes, kFileMax),
              std::byte{0});
  const uint64_t meta = place(file, kPageBytes, h.meta_bytes, input);
  const uint64_t layout = place(file, h.layout_offset, h.layout_bytes, input);
  (void)place(file, h.encoded_offset, h.encoded_bytes, input);
  if (mended) {
    h.meta_checksum = meta, h.layout_checksum = layout;
    h.header_checksum = sandbox_header_checksum(h);
  }
  std::memcpy(file.data(), &h, sizeof h);
  return file;
}

void open(MutableBytes file) {
  SandboxHeader header;
  std::memcpy(&header, file.data(), sizeof header);
  check_sandbox_header(header, file.size(), "sandbox");
  const auto sections = parse_sandbox_sections(header, file.first(header.mutable_offset), "sandbox", nullptr);
  (void)checksum64(sections.meta);
  const SandboxFileState state = sandbox_file_state(header, file.subspan(header.mutable_offset));
  for (auto& page : state.pages) page.store(0);
  for (auto& record : state.uffds) record.fd = -1;
  for (auto& change : state.changes) change.committed.store(0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    open(file_of({reinterpret_cast<const std::byte*>(data), size}, size == 0 || data[size - 1] % 16 != 0));
  } catch (const Error& e) {
    if (e.code != Code::corrupt && e.code != Code::unsupported && e.code != Code::limit_exceeded)
      __builtin_trap();
  }
  return 0;
}
