// Mutual TLS over a connected socket: both sides show a certificate that the shared CA signed.
#pragma once

#include <memory>
#include <string>

#include "transport/socket.h"

struct ssl_ctx_st;

namespace medes {

struct TlsFiles {
  std::string certificate, private_key, ca;  // PEM files; all three, or none for plain TCP
  bool enabled() const { return !certificate.empty() || !private_key.empty() || !ca.empty(); }
};

// Certificates of one node, loaded once. Thread-safe.
class TlsContext {
 public:
  enum class Side { server, client };
  TlsContext(const TlsFiles& files, Side side);  // throws invalid_argument
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  // Takes the non-blocking socket through the handshake. A client checks that the certificate names `host`.
  // Throws unauthenticated, peer_unreachable.
  std::unique_ptr<Stream> handshake(FileDescriptor fd, const std::string& host, Deadline deadline);

 private:
  Side side_;
  ssl_ctx_st* context_ = nullptr;
};

}  // namespace medes
