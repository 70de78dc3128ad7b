// Opening a child file of arbitrary bytes: refused with an Error, or a file whose every accessor stays inside
// it and whose record can be taken up. The header's checksum is made right, so that what lies behind it is
// reached.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "common/checksum.h"
#include "fuzz/with_file.h"
#include "live/call_log.h"
#include "live/segments.h"
#include "store/child_file.h"

using namespace medes;

namespace {

void mend(std::vector<std::byte>& file) {
  ChildHeader h;
  std::memcpy(&h, file.data(), sizeof h);
  h.magic = 0x3148434453454Dull, h.version = 1;
  h.file_bytes = file.size();
  h.header_checksum =
      checksum64({reinterpret_cast<const std::byte*>(&h), offsetof(ChildHeader, header_checksum)});
  std::memcpy(file.data(), &h, sizeof h);
}

void use(ChildFile& file) {
  for (auto& state : file.page_states()) state.store(0);
  CallLog log;
  log.keep_in(file.record());
  (void)log.take_left();
  Segments segments;
  segments.add(0, 1u << 20, 0);
  if (const auto moves = log.moves())
    for (const auto& m : *moves) segments.put(m.origin, m.address, m.bytes);
  log.book(std::vector<MovedPages>(3));
  file.keep_only(Holder{});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> bytes(std::max<size_t>((size + kPageBytes - 1) / kPageBytes, 3) * kPageBytes);
  if (size != 0) std::memcpy(bytes.data(), data, size);
  if (size != 0 && data[size - 1] % 4 != 0) mend(bytes);
  fuzz::with_file("child", bytes, [](const std::string& path) { use(*ChildFile::open(path)); });
  return 0;
}
