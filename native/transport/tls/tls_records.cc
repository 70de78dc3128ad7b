#include "transport/tls_records.h"

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
    size_t wanted = 0;
    for (const iovec& part : from)
      wanted += part.iov_len + (part.iov_len / kRecordDataBytesMax + 1) * kRecordOverheadBytes;
    wanted = std::clamp(wanted, kBufferBytesMin, kBufferBytesMax);
    if (out_.size() < wanted) out_.resize(wanted);
    out_filled_ = out_sent_ = 0;
    for (const iovec& part : from) {
      const auto* data = static_cast<const uint8_t*>(part.iov_base);
      for (size_t done = 0; done < part.iov_len;) {
        const size_t n = std::min(part.iov_len - done, kRecordDataBytesMax);
        if (out_filled_ + kRecordOverheadBytes + n > out_.size()) return true;
        if (!writing_.seal(data + done, n, out_.data() + out_filled_)) return !records_.empty();
        out_filled_ += kRecordOverheadBytes + n;
        records_.push_back({out_filled_, n});
        done += n;
      }
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
  RecordBuffer out_;
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

bool RecordKeys::seal(const uint8_t* in, size_t n, uint8_t* out, uint8_t type) {
  if (next_ >= kRecordsMax) return false;
  write_header(out, n);
  cipher_->seal(nonce(), out, in, n, type, out + kRecordHeaderBytes);
  ++next_;
  return true;
}

RecordKeys::Opened RecordKeys::open(const uint8_t* record, size_t n, uint8_t* out) {
  uint8_t type = 0;
  if (next_ >= kRecordsMax || !cipher_->open(nonce(), record, record + kRecordHeaderBytes, n, out, type))
    return Opened::bad;
  ++next_;
  if (type == kApplicationData) return Opened::data;
  // Neither padding nor messages of the handshake are sent by this side's like.
  return type == kAlert ? Opened::alert : Opened::bad;
}

// Where the next bytes go.
struct RecordInput::Cursor {
  std::span<iovec> parts;
  size_t part = 0, offset = 0;

  void skip_full() {
    while (part < parts.size() && offset == parts[part].iov_len) {
      ++part;
      offset = 0;
    }
  }
  uint8_t* contiguous(size_t n) {
    skip_full();
    if (part == parts.size() || parts[part].iov_len - offset < n) return nullptr;
    return static_cast<uint8_t*>(parts[part].iov_base) + offset;
  }
  size_t copy(const RecordBuffer& from, size_t& taken) {
    size_t copied = 0;
    for (skip_full(); part < parts.size() && taken < from.size(); skip_full()) {
      const size_t n = std::min(parts[part].iov_len - offset, from.size() - taken);
      std::memcpy(static_cast<uint8_t*>(parts[part].iov_base) + offset, from.data() + taken, n);
      taken += n;
      offset += n;
      copied += n;
    }
    return copied;
  }
};

IoResult RecordInput::read(std::span<iovec> into, const Receive& receive) {
  size_t total = 0;
  size_t room = 0;
  for (const iovec& part : into) room += part.iov_len;
  Cursor cursor{into};
  while (total < room) {
    if (taken_ < opened_.size()) {
      total += cursor.copy(opened_, taken_);
      continue;
    }
    const Record record = next_record();
    if (record.status == IoStatus::progress) {
      const size_t n = open(record, cursor);
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

// Decrypts a record to where it belongs, by way of opened_ where that is not in one piece; the bytes that
// went straight there.
size_t RecordInput::open(const Record& record, Cursor& cursor) {
  uint8_t* direct = cursor.contiguous(std::max<size_t>(record.data_bytes, 1));
  if (!direct) {
    opened_.resize(record.data_bytes);
    taken_ = 0;
  }
  const auto opened = keys_.open(record.bytes, record.data_bytes, direct ? direct : opened_.data());
  in_begin_ += kRecordOverheadBytes + record.data_bytes;
  if (opened == RecordKeys::Opened::data) {
    if (direct) cursor.offset += record.data_bytes;
    return direct ? record.data_bytes : 0;
  }
  const uint8_t* alert = direct ? direct : opened_.data();
  const bool closes =
      opened == RecordKeys::Opened::alert && record.data_bytes == 2 && alert[1] == 0;  // close_notify
  refused_ = opened == RecordKeys::Opened::alert && !closes;
  end_ = closes ? IoStatus::closed : IoStatus::failed;
  opened_.clear();
  taken_ = 0;
  return 0;
}

IoStatus RecordInput::fill(const Receive& receive) {
  if (in_.size() < kBufferBytesMin) in_.resize(kBufferBytesMin);
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
      if (in_end_ == in_.size() && in_end_ < kBufferBytesMax) in_.resize(2 * in_.size());  // more was there
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
