// Bounded little-endian readers and writers for every format of the core. A Reader never reads
// outside its span: it throws Code::corrupt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "common/error.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "formats are little-endian and read in place");

namespace medes {

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

// Memory as the 8-byte words that it is made of here.
inline const uint64_t* as_words(const std::byte* bytes) { return reinterpret_cast<const uint64_t*>(bytes); }

class ByteReader {
 public:
  explicit ByteReader(Bytes data, std::string object = {}) : data_(data), object_(std::move(object)) {}

  template <typename T>
    requires std::is_trivially_copyable_v<T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  Bytes take(size_t n) {
    if (n > data_.size() - at_) throw Error(Code::corrupt, "truncated input", object_);
    Bytes out = data_.subspan(at_, n);
    at_ += n;
    return out;
  }
  size_t remaining() const { return data_.size() - at_; }
  size_t position() const { return at_; }

 private:
  Bytes data_;
  size_t at_ = 0;
  std::string object_;
};

class ByteWriter {
 public:
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    const auto* p = reinterpret_cast<const std::byte*>(&value);
    out_.insert(out_.end(), p, p + sizeof(T));
  }
  void put_bytes(Bytes data) { out_.insert(out_.end(), data.begin(), data.end()); }
  size_t size() const { return out_.size(); }
  std::vector<std::byte>& buffer() { return out_; }

 private:
  std::vector<std::byte> out_;
};

}  // namespace medes
