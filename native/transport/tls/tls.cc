#include "transport/tls/tls.h"

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>
#include <vector>

#include "transport/tls/tls_records.h"

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

std::unique_ptr<BIO, int (*)(BIO*)> memory_bio(const std::string& text) {
  std::unique_ptr<BIO, int (*)(BIO*)> bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())),
                                          BIO_free);
  if (!bio) throw Error(Code::internal, "cannot make a TLS buffer");
  return bio;
}

std::unique_ptr<X509, void (*)(X509*)> next_certificate(BIO* bio) {
  return {PEM_read_bio_X509(bio, nullptr, nullptr, nullptr), X509_free};
}

[[noreturn]] void refuse(const char* what) {
  throw Error(Code::invalid_argument, std::string(what) + ": " + last_tls_error());
}

void load(SSL_CTX* context, const TlsPem& pem) {
  const auto chain = memory_bio(pem.certificate);
  const auto own = next_certificate(chain.get());
  if (!own || SSL_CTX_use_certificate(context, own.get()) != 1) refuse("cannot load the certificate");
  while (const auto more = next_certificate(chain.get()))
    if (SSL_CTX_add1_chain_cert(context, more.get()) != 1) refuse("cannot load the certificate's chain");
  const auto key_text = memory_bio(pem.private_key);
  const std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)> key(
      PEM_read_bio_PrivateKey(key_text.get(), nullptr, nullptr, nullptr), EVP_PKEY_free);
  if (!key || SSL_CTX_use_PrivateKey(context, key.get()) != 1) refuse("cannot load the private key");
  if (SSL_CTX_check_private_key(context) != 1) refuse("key and certificate do not match");
  const auto authorities = memory_bio(pem.ca);
  size_t count = 0;
  while (const auto authority = next_certificate(authorities.get())) {
    if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get()) != 1)
      refuse("cannot load the CA's certificate");
    ++count;
  }
  ERR_clear_error();  // the end of a PEM text is reported as an error
  if (count == 0) refuse("no CA certificate");
}

std::string node_of(SSL* ssl) {
  const std::unique_ptr<X509, void (*)(X509*)> certificate(SSL_get1_peer_certificate(ssl), X509_free);
  if (!certificate) return {};
  auto* names = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate.get(), NID_subject_alt_name, nullptr, nullptr));
  std::vector<std::string_view> uris;
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* value = name->d.uniformResourceIdentifier;
    uris.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(value)),
                      static_cast<size_t>(ASN1_STRING_length(value)));
  }
  std::string node = node_named_by(uris);
  GENERAL_NAMES_free(names);
  return node;
}

// Kept beside the SSL object while the handshake runs: OpenSSL tells traffic secrets to its key log only.
int secrets_index() {
  static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
  return index;
}

struct LoggedSecrets {
  TrafficSecret client{}, server{};
  bool has_client = false, has_server = false;
  ~LoggedSecrets() {
    OPENSSL_cleanse(client.data(), client.size());
    OPENSSL_cleanse(server.data(), server.size());
  }
};

bool parse_hex(std::string_view text, TrafficSecret& out) {
  if (text.size() != 2 * out.size()) return false;
  for (size_t i = 0; i < out.size(); ++i) {
    const char* begin = text.data() + 2 * i;
    if (std::from_chars(begin, begin + 2, out[i], 16).ptr != begin + 2) return false;
  }
  return true;
}

// Lines are "LABEL client-random secret".
void keep_secret(const SSL* ssl, const char* line) {
  auto* kept = static_cast<LoggedSecrets*>(SSL_get_ex_data(ssl, secrets_index()));
  const std::string_view text(line);
  const size_t label = text.find(' '), secret = text.rfind(' ');
  if (!kept || label == std::string_view::npos || label == secret) return;
  const std::string_view value = text.substr(secret + 1);
  if (text.substr(0, label) == "CLIENT_TRAFFIC_SECRET_0") kept->has_client = parse_hex(value, kept->client);
  if (text.substr(0, label) == "SERVER_TRAFFIC_SECRET_0") kept->has_server = parse_hex(value, kept->server);
}

// What the handshake needs next; `refused`: the other side does not want us, or is not who it should be.
IoStatus status_of(SSL* ssl, int result, bool& refused) {
  refused = false;
  switch (SSL_get_error(ssl, result)) {
    case SSL_ERROR_WANT_READ: return IoStatus::want_read;
    case SSL_ERROR_WANT_WRITE: return IoStatus::want_write;
    case SSL_ERROR_ZERO_RETURN: return IoStatus::closed;
    case SSL_ERROR_SSL:
      refused = ERR_GET_REASON(ERR_peek_error()) != SSL_R_UNEXPECTED_EOF_WHILE_READING;
      break;
    default: break;  // the connection ended
  }
  return IoStatus::failed;
}

}  // namespace

std::string node_named_by(std::span<const std::string_view> uris) {
  constexpr std::string_view kScheme = "medes://", kNode = "medes://node/", kDomain = "medes://domain/";
  std::string node;
  int parties = 0;
  for (const std::string_view uri : uris) {
    if (!uri.starts_with(kScheme) || uri.starts_with(kDomain)) continue;
    ++parties;
    if (uri.starts_with(kNode)) node = uri.substr(kNode.size());
  }
  return parties == 1 ? node : std::string();
}

TlsContext::TlsContext(const TlsPem& pem, Side side) : side_(side) {
  if (pem.certificate.empty() || pem.private_key.empty() || pem.ca.empty())
    throw Error(Code::invalid_argument, "TLS needs a certificate, its private key and the CA's certificate");
  context_ = SSL_CTX_new(side == Side::server ? TLS_server_method() : TLS_client_method());
  if (!context_) throw Error(Code::internal, "cannot make a TLS context: " + last_tls_error());
  try {
    SSL_CTX_set_min_proto_version(context_, TLS1_3_VERSION);
    // One suite: the record layer's own (tls_records.h).
    if (SSL_CTX_set_ciphersuites(context_, "TLS_AES_128_GCM_SHA256") != 1) refuse("no AES-GCM");
    SSL_CTX_set_keylog_callback(context_, keep_secret);
    SSL_CTX_set_verify(context_, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    // Every connection proves who it is: a resumed session would outlive the certificate it was opened with.
    SSL_CTX_set_num_tickets(context_, 0);
    SSL_CTX_set_session_cache_mode(context_, SSL_SESS_CACHE_OFF);
    load(context_, pem);
  } catch (...) {
    SSL_CTX_free(context_);
    throw;
  }
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

std::unique_ptr<Stream> TlsContext::handshake(FileDescriptor fd, const std::string& server_name,
                                              Deadline deadline) {
  const std::unique_ptr<SSL, void (*)(SSL*)> session(SSL_new(context_), SSL_free);
  SSL* ssl = session.get();
  LoggedSecrets secrets;
  if (!ssl || SSL_set_ex_data(ssl, secrets_index(), &secrets) != 1)
    throw Error(Code::internal, "cannot make a TLS session: " + last_tls_error());
  const int descriptor = fd.get();
  BIO* bio = socket_bio(descriptor);
  SSL_set_bio(ssl, bio, bio);
  if (side_ == Side::client) {
    X509_VERIFY_PARAM* verify = SSL_get0_param(ssl);
    if (X509_VERIFY_PARAM_set1_ip_asc(verify, server_name.c_str()) != 1) {
      SSL_set_tlsext_host_name(ssl, server_name.c_str());
      if (SSL_set1_host(ssl, server_name.c_str()) != 1)
        throw Error(Code::invalid_argument, "server name", server_name);
    }
    SSL_set_connect_state(ssl);
  } else {
    SSL_set_accept_state(ssl);
  }
  for (;;) {
    ERR_clear_error();
    const int result = SSL_do_handshake(ssl);
    if (result == 1) break;
    bool refused = false;
    const IoStatus status = status_of(ssl, result, refused);
    if (status == IoStatus::want_read || status == IoStatus::want_write) {
      if (wait_ready(descriptor, status, deadline)) continue;
      throw Error(Code::peer_unreachable, "TLS handshake timed out", server_name);
    }
    // A peer that dies now has refused nobody: that may pass.
    if (!refused)
      throw Error(Code::peer_unreachable, "connection ended during the TLS handshake", server_name);
    const long verified = SSL_get_verify_result(ssl);
    const std::string why = verified == X509_V_OK ? last_tls_error()
                                                  : std::string("the other side's certificate: ") +
                                                        X509_verify_cert_error_string(verified);
    ERR_clear_error();
    throw Error(Code::unauthenticated, "TLS handshake refused: " + why, server_name,
                "both nodes need certificates of one CA, not expired, each for its own name");
  }
  if (!secrets.has_client || !secrets.has_server || SSL_version(ssl) != TLS1_3_VERSION ||
      SSL_has_pending(ssl))
    throw Error(Code::internal, "the TLS handshake left no traffic keys", server_name);
  const bool client = side_ == Side::client;
  TrafficSecrets keys{client ? secrets.server : secrets.client, client ? secrets.client : secrets.server};
  auto stream = tls_record_stream(std::move(fd), keys, node_of(ssl));
  OPENSSL_cleanse(&keys, sizeof keys);
  return stream;
}

void TlsIdentity::replace(const TlsPem& pem) {
  auto server = std::make_shared<TlsContext>(pem, TlsContext::Side::server);
  auto client = std::make_shared<TlsContext>(pem, TlsContext::Side::client);
  std::lock_guard lock(mutex_);
  server_ = std::move(server);
  client_ = std::move(client);
}

std::shared_ptr<TlsContext> TlsIdentity::server() const {
  std::lock_guard lock(mutex_);
  return server_;
}

std::shared_ptr<TlsContext> TlsIdentity::client() const {
  std::lock_guard lock(mutex_);
  return client_;
}

}  // namespace medes
