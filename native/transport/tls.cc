#include "transport/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace medes {

namespace {

std::string last_tls_error() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "connection closed";
  char text[256];
  ERR_error_string_n(code, text, sizeof text);
  return text;
}

// A socket BIO that never raises SIGPIPE: OpenSSL's own uses write(2), and a library cannot know what the
// process does with that signal.
int bio_descriptor(BIO* bio) { return static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio))); }

int bio_write(BIO* bio, const char* data, int n) {
  BIO_clear_retry_flags(bio);
  const ssize_t sent = send(bio_descriptor(bio), data, static_cast<size_t>(n), MSG_NOSIGNAL);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

int bio_read(BIO* bio, char* data, int n) {
  BIO_clear_retry_flags(bio);
  const ssize_t got = recv(bio_descriptor(bio), data, static_cast<size_t>(n), 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  return static_cast<int>(got);
}

long bio_control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

BIO* socket_bio(int fd) {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "medes socket");
    BIO_meth_set_write(m, bio_write);
    BIO_meth_set_read(m, bio_read);
    BIO_meth_set_ctrl(m, bio_control);
    return m;
  }();
  BIO* bio = BIO_new(method);
  if (!bio) throw Error(Code::internal, "cannot make a TLS stream");
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(fd)));
  BIO_set_init(bio, 1);
  return bio;
}

class TlsStream final : public Stream {
 public:
  TlsStream(FileDescriptor fd, SSL* ssl) : Stream(std::move(fd)), ssl_(ssl) {}
  ~TlsStream() override { SSL_free(ssl_); }
  const char* transport_name() const override { return "tcp+tls"; }
  bool buffers() const override { return true; }
  bool buffered() const override { return SSL_pending(ssl_) > 0; }

  IoResult read(std::span<iovec> into) override {
    for (iovec& part : into) {
      if (part.iov_len == 0) continue;
      size_t n = 0;
      ERR_clear_error();
      if (SSL_read_ex(ssl_, part.iov_base, part.iov_len, &n)) return {IoStatus::progress, n};
      return {status_of(0), 0};
    }
    return {IoStatus::progress, 0};
  }

  // One record a call. Small parts are gathered to a full record first: a record, and a send, for each
  // 4 KiB page would cost twice the time. A retry gathers the same bytes again, as OpenSSL demands.
  IoResult write(std::span<const iovec> from) override {
    const void* data = nullptr;
    size_t length = 0;
    if (!from.empty() && from[0].iov_len >= sizeof record_) {
      data = from[0].iov_base;
      length = sizeof record_;
    } else {
      for (const iovec& part : from) {
        const size_t n = std::min(part.iov_len, sizeof record_ - length);
        if (n > 0) std::memcpy(record_ + length, part.iov_base, n);
        length += n;
        if (length == sizeof record_) break;
      }
      data = record_;
    }
    if (length == 0) return {IoStatus::progress, 0};
    size_t n = 0;
    ERR_clear_error();
    if (SSL_write_ex(ssl_, data, length, &n)) return {IoStatus::progress, n};
    return {status_of(0), 0};
  }

  bool refused() const override { return refused_; }

  IoStatus status_of(int result) {
    switch (SSL_get_error(ssl_, result)) {
      case SSL_ERROR_WANT_READ: return IoStatus::want_read;
      case SSL_ERROR_WANT_WRITE: return IoStatus::want_write;
      case SSL_ERROR_ZERO_RETURN: return IoStatus::closed;
      case SSL_ERROR_SSL:
        refused_ = ERR_GET_REASON(ERR_peek_error()) != SSL_R_UNEXPECTED_EOF_WHILE_READING;
        break;
      default: break;  // the connection ended
    }
    return IoStatus::failed;
  }

 private:
  SSL* ssl_;
  bool refused_ = false;
  std::byte record_[16 * 1024];
};

}  // namespace

TlsContext::TlsContext(const TlsFiles& files, Side side) : side_(side) {
  if (files.certificate.empty() || files.private_key.empty() || files.ca.empty())
    throw Error(Code::invalid_argument, "TLS needs a certificate, its private key and the CA's certificate");
  context_ = SSL_CTX_new(side == Side::server ? TLS_server_method() : TLS_client_method());
  if (!context_) throw Error(Code::internal, "cannot make a TLS context: " + last_tls_error());
  auto fail = [&](const char* what, const std::string& file) {
    const std::string text = std::string(what) + ": " + last_tls_error();
    SSL_CTX_free(context_);
    throw Error(Code::invalid_argument, text, file);
  };
  SSL_CTX_set_min_proto_version(context_, TLS1_3_VERSION);
  SSL_CTX_set_mode(context_, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_verify(context_, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  if (SSL_CTX_use_certificate_chain_file(context_, files.certificate.c_str()) != 1)
    fail("cannot load certificate", files.certificate);
  if (SSL_CTX_use_PrivateKey_file(context_, files.private_key.c_str(), SSL_FILETYPE_PEM) != 1)
    fail("cannot load private key", files.private_key);
  if (SSL_CTX_check_private_key(context_) != 1) fail("key and certificate do not match", files.private_key);
  if (SSL_CTX_load_verify_locations(context_, files.ca.c_str(), nullptr) != 1)
    fail("cannot load CA certificate", files.ca);
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

std::unique_ptr<Stream> TlsContext::handshake(FileDescriptor fd, const std::string& host, Deadline deadline) {
  SSL* ssl = SSL_new(context_);
  if (!ssl) throw Error(Code::internal, "cannot make a TLS session: " + last_tls_error());
  const int descriptor = fd.get();
  auto stream = std::make_unique<TlsStream>(std::move(fd), ssl);
  BIO* bio = socket_bio(descriptor);
  SSL_set_bio(ssl, bio, bio);
  if (side_ == Side::client) {
    X509_VERIFY_PARAM* verify = SSL_get0_param(ssl);
    if (X509_VERIFY_PARAM_set1_ip_asc(verify, host.c_str()) != 1) {
      SSL_set_tlsext_host_name(ssl, host.c_str());
      if (SSL_set1_host(ssl, host.c_str()) != 1) throw Error(Code::invalid_argument, "host name", host);
    }
    SSL_set_connect_state(ssl);
  } else {
    SSL_set_accept_state(ssl);
  }
  for (;;) {
    ERR_clear_error();
    const int result = SSL_do_handshake(ssl);
    if (result == 1) return stream;
    const IoStatus status = stream->status_of(result);
    if (status == IoStatus::want_read || status == IoStatus::want_write) {
      if (wait_ready(descriptor, status, deadline)) continue;
      throw Error(Code::peer_unreachable, "TLS handshake timed out", host);
    }
    // A peer that dies now has refused nobody: that may pass.
    if (!stream->refused())
      throw Error(Code::peer_unreachable, "connection ended during the TLS handshake", host);
    throw Error(Code::unauthenticated, "TLS handshake refused: " + last_tls_error(), host,
                "both nodes need certificates of the same CA that name their hosts");
  }
}

}  // namespace medes
