#include "transport/tls/tls_records.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

namespace medes {

namespace {

// Sealed or received at once, by connections that move so much. A quarter of it costs a tenth of the speed.
constexpr size_t kBufferBytesMax = 1024 * 1024;
constexpr size_t kBufferBytesMin = 32 * 1024;
constexpr size_t kRecordBytesMax = kRecordOverheadBytes + kRecordDataBytesMax;
constexpr size_t kPartsAhead = 4;

// HKDF-Expand-Label with an empty context, for outputs of at most one hash.
template <size_t N>
std::array<uint8_t, N> expand_label(const TrafficSecret& secret, std::string_view label) {
  static_assert(N <= 32);
  const std::string name = std::string("tls13 ").append(label);
  std::vector<uint8_t> info{0, N, static_cast<uint8_t>(name.size())};
  info.insert(info.end(), name.begin(), name.end());
  info.push_back(0);  // the context's length
  info.push_back(1);  // the first block of HKDF-Expand
  std::array<uint8_t, 32> block{};
  unsigned length = 0;
  if (!HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()), info.data(), info.size(),
            block.data(), &length))
    throw Error(Code::internal, "cannot derive a TLS key");
  std::array<uint8_t, N> out{};
  std::copy_n(block.begin(), N, out.begin());
  OPENSSL_cleanse(block.data(), block.size());
  return out;
}

// The type of a record is inside it; the header of each says that it is data.
void write_header(uint8_t* out, size_t data_bytes) {
  const size_t length = data_bytes + 1 + kGcmTagBytes;
  const uint8_t header[kRecordHeaderBytes] = {kApplicationData, 3, 3, static_cast<uint8_t>(length >> 8),
                                              static_cast<uint8_t>(length)};
  std::memcpy(out, header, sizeof header);
}

size_t bytes_of(std::span<const iovec> parts) {
  size_t n = 0;
  for (const iovec& part : parts) n += part.iov_len;
  return n;
}

class RecordStream final : public Stream {
 public:
  RecordStream(FileDescriptor fd, const TrafficSecrets& secrets, std::string peer_node)
      : Stream(std::move(fd)),
        input_(RecordKeys(secrets.read)),
        writing_(secrets.write),
        peer_(std::move(peer_node)) {}

  const char* transport_name() const override { return "tcp+tls"; }
  std::string peer_node() const override { return peer_; }
  bool buffers() const override { return true; }
  bool refused() const override { return input_.refused(); }
  bool spent() const override { return input_.spent() || writing_.spent(); }

  // Bytes are reported when the last of their record is in the kernel's hands; what was sealed and not sent
  // is sent by the next call, which gets the same bytes again.
  IoResult write(std::span<const iovec> from) override {
    if (records_.empty() && !seal(from)) return {IoStatus::failed, 0};
    while (out_sent_ < out_filled_) {
      const ssize_t n = send(fd(), out_.data() + out_sent_, out_filled_ - out_sent_, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        const size_t bytes = take_sent();
        if (bytes > 0) return {IoStatus::progress, bytes};
        return {errno == EAGAIN || errno == EWOULDBLOCK ? IoStatus::want_write : IoStatus::failed, 0};
      }
      out_sent_ += static_cast<size_t>(n);
    }
    return {IoStatus::progress, take_sent()};
  }

  IoResult read(std::span<iovec> into) override {
    return input_.read(into, [this](uint8_t* to, size_t room) { return recv(fd(), to, room, 0); });
  }

 private:
  struct Sealed {
    size_t end, bytes;  // of the record in out_; of plaintext in it
  };

  bool seal(std::span<const iovec> from) {
    size_t wanted = kRecordBytesMax;
    for (const iovec& part : from)
      wanted += part.iov_len + (part.iov_len / kRecordDataBytesMax + 1) * kRecordOverheadBytes;
    wanted = std::clamp(wanted, kBufferBytesMin, kBufferBytesMax);
    if (out_.size() < wanted) out_.grow(wanted);
    out_filled_ = out_sent_ = 0;
    // Only whole records: the rest of one that was cut short would lie across the reader's parts.
    for (RecordParts parts(from); !parts.ended() && out_.size() - out_filled_ >= kRecordBytesMax;) {
      const auto record = parts.next(kRecordDataBytesMax);
      if (!writing_.seal(record, out_.data() + out_filled_, kApplicationData, parts.ahead()))
        return !records_.empty();
      out_filled_ += kRecordOverheadBytes + parts.bytes();
      records_.push_back({out_filled_, parts.bytes()});
    }
    return true;
  }

  size_t take_sent() {
    size_t bytes = 0, count = 0;
    while (count < records_.size() && records_[count].end <= out_sent_) bytes += records_[count++].bytes;
    records_.erase(records_.begin(), records_.begin() + static_cast<ptrdiff_t>(count));
    return bytes;
  }

  RecordInput input_;
  RecordKeys writing_;
  std::string peer_;
  WipedRoom out_;
  size_t out_filled_ = 0, out_sent_ = 0;
  std::vector<Sealed> records_;  // sealed, and not reported yet
};

}  // namespace

RecordKeys::RecordKeys(const TrafficSecret& secret) : iv_(expand_label<kGcmNonceBytes>(secret, "iv")) {
  auto key = expand_label<kGcmKeyBytes>(secret, "key");
  cipher_ = make_record_cipher(key.data());
  OPENSSL_cleanse(key.data(), key.size());
}

GcmNonce RecordKeys::nonce() const {
  GcmNonce out = iv_;
  for (size_t i = 0; i < 8; ++i) out[kGcmNonceBytes - 1 - i] ^= static_cast<uint8_t>(next_ >> (8 * i));
  return out;
}

bool RecordKeys::seal(std::span<const iovec> in, uint8_t* out, uint8_t type, const uint8_t* ahead) {
  if (next_ >= kRecordsMax) return false;
  write_header(out, bytes_of(in));
  cipher_->seal(nonce(), out, in, type, out + kRecordHeaderBytes, ahead);
  ++next_;
  return true;
}

RecordKeys::Opened RecordKeys::open(const uint8_t* record, std::span<const iovec> out, const uint8_t* ahead) {
  uint8_t type = 0;
  if (next_ >= kRecordsMax || !cipher_->open(nonce(), record, record + kRecordHeaderBytes, out, type, ahead))
    return Opened::bad;
  ++next_;
  if (type == kApplicationData) return Opened::data;
  // Neither padding nor messages of the handshake are sent by this side's like.
  return type == kAlert ? Opened::alert : Opened::bad;
}

bool RecordParts::ended() {
  for (; part_ < from_.size() && offset_ == from_[part_].iov_len; ++part_) offset_ = 0;
  return part_ == from_.size();
}

const uint8_t* RecordParts::ahead() {
  return ended() ? nullptr : static_cast<const uint8_t*>(from_[part_].iov_base) + offset_;
}

std::span<const iovec> RecordParts::next(size_t n) {
  size_t count = 0;
  for (bytes_ = 0; bytes_ < n && !ended();) {
    const size_t piece = std::min(from_[part_].iov_len - offset_, n - bytes_);
    found_[count++] = {static_cast<uint8_t*>(from_[part_].iov_base) + offset_, piece};
    // Scattered pages: by the time that one's turn comes, its translation is known.
    if (part_ + kPartsAhead < from_.size()) __builtin_prefetch(from_[part_ + kPartsAhead].iov_base);
    offset_ += piece;
    bytes_ += piece;
    if (piece % kGcmStepBytes != 0) break;
  }
  return std::span(found_).first(count);
}

std::span<const iovec> RecordParts::exactly(size_t n) {
  const size_t part = part_, offset = offset_;
  const auto found = next(n);
  if (bytes_ == n) return found;
  part_ = part;
  offset_ = offset;
  return {};
}

size_t RecordParts::fill(std::span<const uint8_t> bytes) {
  size_t filled = 0;
  while (filled < bytes.size() && !ended()) {
    const size_t n = std::min(from_[part_].iov_len - offset_, bytes.size() - filled);
    std::memcpy(static_cast<uint8_t*>(from_[part_].iov_base) + offset_, bytes.data() + filled, n);
    filled += n;
    offset_ += n;
  }
  return filled;
}

IoResult RecordInput::read(std::span<iovec> into, const Receive& receive) {
  size_t total = 0;
  for (RecordParts parts(into); !parts.ended();) {
    if (taken_ < opened_.size()) {
      const size_t n = parts.fill(std::span<const uint8_t>(opened_).subspan(taken_));
      taken_ += n;
      total += n;
      continue;
    }
    const Record record = next_record();
    if (record.status == IoStatus::progress) {
      const size_t n = open(record, parts);
      if (n == 0 && end_ != IoStatus::progress) break;
      total += n;
      continue;
    }
    if (record.status == IoStatus::want_read) {
      const IoStatus status = fill(receive);
      if (status == IoStatus::progress) continue;
      if (status != IoStatus::want_read) end_ = status;
    }
    if (end_ == IoStatus::progress && record.status == IoStatus::failed) end_ = IoStatus::failed;
    break;
  }
  if (total > 0) return {IoStatus::progress, total};
  return {end_ == IoStatus::progress ? IoStatus::want_read : end_, 0};
}

// The next whole record that was received; failed when what has come is none of this protocol.
RecordInput::Record RecordInput::next_record() const {
  if (end_ != IoStatus::progress) return {end_};
  const size_t held = in_end_ - in_begin_;
  if (held < kRecordHeaderBytes) return {IoStatus::want_read};
  const uint8_t* header = in_.data() + in_begin_;
  const size_t length = static_cast<size_t>(header[3]) << 8 | header[4];
  if (header[0] != kApplicationData || header[1] != 3 || header[2] != 3 || length < 1 + kGcmTagBytes ||
      length > kRecordBytesMax - kRecordHeaderBytes)
    return {IoStatus::failed};
  if (held < kRecordHeaderBytes + length) return {IoStatus::want_read};
  return {IoStatus::progress, header, length - 1 - kGcmTagBytes};
}

// Decrypts a record to where it belongs, by way of opened_ where that cannot be had; the bytes that went
// straight there.
size_t RecordInput::open(const Record& record, RecordParts& into) {
  auto to = into.exactly(record.data_bytes);
  const bool direct = !to.empty();
  iovec aside{};
  if (!direct) {
    opened_.resize(record.data_bytes);
    taken_ = 0;
    aside = {opened_.data(), opened_.size()};
    to = {&aside, 1};
  }
  const auto opened = keys_.open(record.bytes, to, into.ahead());
  in_begin_ += kRecordOverheadBytes + record.data_bytes;
  if (opened == RecordKeys::Opened::data) return direct ? record.data_bytes : 0;
  const auto* alert = static_cast<const uint8_t*>(to[0].iov_base);
  const bool closes =
      opened == RecordKeys::Opened::alert && record.data_bytes == 2 && alert[1] == 0;  // close_notify
  refused_ = opened == RecordKeys::Opened::alert && !closes;
  end_ = closes ? IoStatus::closed : IoStatus::failed;
  opened_.clear();
  taken_ = 0;
  return 0;
}

IoStatus RecordInput::fill(const Receive& receive) {
  if (in_.size() < kBufferBytesMin) in_.grow(kBufferBytesMin);
  if (in_begin_ == in_end_) in_begin_ = in_end_ = 0;
  if (in_.size() - in_begin_ < kRecordBytesMax) {
    std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
    in_end_ -= in_begin_;
    in_begin_ = 0;
  }
  for (;;) {
    const ssize_t n = receive(in_.data() + in_end_, in_.size() - in_end_);
    if (n > 0) {
      in_end_ += static_cast<size_t>(n);
      if (in_end_ == in_.size() && in_end_ < kBufferBytesMax)
        in_.grow(2 * in_.size(), in_end_);  // more was there
      return IoStatus::progress;
    }
    if (n == 0) return IoStatus::closed;
    if (errno == EINTR) continue;
    return errno == EAGAIN || errno == EWOULDBLOCK ? IoStatus::want_read : IoStatus::failed;
  }
}

std::unique_ptr<Stream> tls_record_stream(FileDescriptor fd, const TrafficSecrets& secrets,
                                          std::string peer_node) {
  return std::make_unique<RecordStream>(std::move(fd), secrets, std::move(peer_node));
}

}  // namespace medes
