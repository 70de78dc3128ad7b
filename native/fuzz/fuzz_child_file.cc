// A child file of arbitrary bytes: refused as corrupt or unsupported, or one whose every part lies inside it
// and whose record can be taken up. The input is the header, then the beginnings of what lies behind its
// page: states and record, moves of either bank, messages, page states. Magic, lengths and checksum are made
// right (but where the last byte says otherwise), so that what lies behind them is reached.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/checksum.h"
#include "common/error.h"
#include "serving/call_log.h"
#include "serving/segments.h"
#include "store/child_file.h"

using namespace medes;

namespace {

// Where parts of the input go, and how much of it each takes.
struct Part {
  size_t offset, bytes;
};
constexpr size_t kRecord = kPageBytes + 64;
constexpr Part kParts[] = {
    {0, sizeof(ChildHeader)},
    {kPageBytes, 64 + offsetof(ChangeRecord, moves)},
    {kRecord + offsetof(ChangeRecord, moves), 8 * sizeof(MovedPages)},
    {kRecord + offsetof(ChangeRecord, moves) + sizeof(ChangeRecord::moves[0]), 3 * sizeof(MovedPages)},
    {kRecord + offsetof(ChangeRecord, messages), 4 * sizeof(uffd_msg)},
    {kRecord + sizeof(ChangeRecord), 64}};

void mend(std::vector<std::byte>& file) {
  ChildHeader h;
  std::memcpy(&h, file.data(), sizeof h);
  h.magic = kChildMagic, h.version = 1;
  h.file_bytes = file.size();
  h.header_checksum =
      checksum64({reinterpret_cast<const std::byte*>(&h), offsetof(ChildHeader, header_checksum)});
  std::memcpy(file.data(), &h, sizeof h);
}

void open(MutableBytes file) {
  ChildHeader header;
  std::memcpy(&header, file.data(), sizeof header);
  check_child_header(header, file.size(), "child");
  const MutableBytes changing = file.subspan(kPageBytes);
  const ChildParts parts = child_parts(header, changing);
  const auto* const end = reinterpret_cast<const std::byte*>(parts.pages.data() + parts.pages.size());
  if (end > changing.data() + changing.size() ||
      reinterpret_cast<const std::byte*>(&parts.record + 1) > changing.data() + changing.size())
    __builtin_trap();
  static CallLog log;
  log.keep_in(parts.record);
  if (const auto left = CallLog::left_in(parts.record); left && left->size() > ChangeRecord::kMaxMessages)
    __builtin_trap();
  (void)log.left_order();
  Segments segments;
  segments.add(0, 1u << 20, 0);
  if (const auto moves = log.moves())
    for (const auto& m : *moves) segments.put(m.origin, m.address, m.bytes);
  uint64_t last = 0;
  for (const Segment& s : segments.all()) {
    if (s.begin < last || s.end < s.begin) __builtin_trap();
    last = s.end;
  }
  log.commit(std::vector<MovedPages>(3, {0x1000, 0x5000, 0x1000}));
  if (const auto moves = log.moves(); !moves || moves->size() != 3) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static std::vector<std::byte> file;
  file.assign(2 * kPageBytes, std::byte{0});
  size_t at = 0;
  for (const Part& part : kParts) {
    const size_t n = std::min(part.bytes, size - at);
    if (n != 0) std::memcpy(file.data() + part.offset, data + at, n);
    at += n;
  }
  if (size != 0 && data[size - 1] % 16 != 0) mend(file);
  try {
    open(file);
  } catch (const Error& e) {
    if (e.code != Code::corrupt && e.code != Code::unsupported) __builtin_trap();
  }
  return 0;
}
