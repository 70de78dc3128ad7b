// A sealed file with edits, or with a seal of anybody's: taken if it is what was sealed, corrupt otherwise.
#include <array>
#include <cstdint>
#include <cstring>

#include "common/error.h"
#include "common/limits.h"
#include "store/seal.h"

using namespace medes;

namespace {

// Behind the seal is room for a checksum, which covers it.
constexpr size_t kBody = 64, kSealEnd = 4056 + 32;

struct File {
  std::array<std::byte, kPageBytes + kBody> bytes{};
  MutableBytes header() { return MutableBytes(bytes).first(kPageBytes); }
  MutableBytes body() { return MutableBytes(bytes).subspan(kPageBytes); }
};

File& sealed() {
  static File file = [] {
    std::array<std::byte, kStoreKeyBytes> key{};
    key[3] = std::byte{9};
    set_store_key("/folder", key);
    File made;
    for (size_t i = 0; i < made.bytes.size(); ++i) made.bytes[i] = static_cast<std::byte>(i * 7);
    seal("/folder/file", made.header(), made.body());
    return made;
  }();
  return file;
}

bool opens(File& file) {
  try {
    check_seal("/folder/file", file.header(), file.body());
    return true;
  } catch (const Error& e) {
    if (e.code != Code::corrupt) __builtin_trap();
    return false;
  }
}

}  // namespace

// The input: edits, each an offset (16 bits) and a value.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  File& original = sealed();
  static File file = original;
  for (size_t i = 0; i + 3 <= size; i += 3) {
    const size_t at = (data[i] | size_t{data[i + 1]} << 8) % file.bytes.size();
    file.bytes[at] = static_cast<std::byte>(data[i + 2]);
  }
  const auto differs = [&](size_t begin, size_t end) {
    return std::memcmp(file.bytes.data() + begin, original.bytes.data() + begin, end - begin) != 0;
  };
  const bool same = !differs(0, kSealEnd) && !differs(kPageBytes, file.bytes.size());
  if (opens(file) != same) __builtin_trap();
  for (size_t i = 0; i + 3 <= size; i += 3) {
    const size_t at = (data[i] | size_t{data[i + 1]} << 8) % file.bytes.size();
    file.bytes[at] = original.bytes[at];
  }
  return 0;
}
