// PageReader over TCP or TLS: `streams` connections to one page server, made on demand and again after a
// failure. A large batch is spread over the streams; a small one goes to the next in turn.
#pragma once

#include <memory>
#include <string>

#include "transport/page_reader.h"
#include "transport/tls/tls.h"
#include "transport/wire.h"

namespace medes {

struct TcpReaderOptions {
  std::string address;  // host:port of the page server
  Token token{};
  size_t streams = 1;                     // 1 … kMaxStreams
  std::shared_ptr<TlsIdentity> identity;  // null: plain TCP
  std::string server_name;                // whom the server's certificate must be for; empty: its host
  bool connect_now = true;                // false: the first batch connects
  int wake = -1;                          // an eventfd, told when the peer refuses the token (see readdress)
  bool check_digests = true;              // false: damage on the way is only found when pages are rebuilt
};

inline constexpr size_t kMaxStreams = 16;

class TcpReader : public PageReader {
 public:
  // With connect_now throws peer_unreachable, unauthenticated; always invalid_argument.
  explicit TcpReader(TcpReaderOptions options);
  ~TcpReader() override;

  TransportCapabilities capabilities() const override;
  std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) override;
  TransportStats stats() const override;
  void close() override;
  // From the next connection on. Reads that wait because their token was refused try again at once.
  void readdress(const std::string& address, std::span<const std::byte> token) override;
  bool reconnect() override;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace medes
