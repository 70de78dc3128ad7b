// Mutual TLS over a connected socket: both sides show a certificate that the shared CA signed.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "transport/socket.h"

struct ssl_ctx_st;

namespace medes {

// PEM texts: a certificate (with its chain, if any), its private key, and the CA certificates to verify with.
struct TlsPem {
  std::string certificate, private_key, ca;
};

// One side's use of a certificate, loaded once. Thread-safe.
class TlsContext {
 public:
  enum class Side { server, client };
  TlsContext(const TlsPem& pem, Side side);  // throws invalid_argument
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  // Takes the non-blocking socket through the handshake. A client checks that the certificate is for
  // `server_name`, a DNS name or an address; a server takes whom the CA signed (Stream::peer_node says who it
  // is). Throws unauthenticated, peer_unreachable.
  std::unique_ptr<Stream> handshake(FileDescriptor fd, const std::string& server_name, Deadline deadline);

 private:
  Side side_;
  ssl_ctx_st* context_ = nullptr;
};

// The node that a certificate's URIs name: exactly one of them names a party, and that is medes://node/NAME
// (medes/certs/parties.py). Empty otherwise.
std::string node_named_by(std::span<const std::string_view> uris);

// What a node shows of itself, shared by its page server and its readers. A replacement holds from the next
// handshake on; connections that are open go on. Thread-safe.
class TlsIdentity {
 public:
  explicit TlsIdentity(const TlsPem& pem) { replace(pem); }
  void replace(const TlsPem& pem);  // throws invalid_argument, changing nothing
  std::shared_ptr<TlsContext> server() const;
  std::shared_ptr<TlsContext> client() const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<TlsContext> server_, client_;
};

}  // namespace medes
