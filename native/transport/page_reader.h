// Reads of base pages from one peer. Implementations: local, tcp, rdma; decorators: retry, metrics,
// fault injection. Thread-safe; batches of different threads overlap.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/error.h"

namespace medes {

struct ReadRequest {
  uint64_t base_id = 0;
  uint64_t offset = 0;               // bytes into the base's stored pages, multiple of 16
  uint32_t length = 0;               // 1 … kMaxReadBytes
  std::byte* destination = nullptr;  // holds nothing of use after a read that failed
};

// What can carry a page; beside these, those that transport_named() has made. Decorators are none: each read
// says what carried it in the end.
enum class Transport : uint8_t { local, tcp, tcp_tls, rdma };
inline constexpr size_t kTransports = 12;
using BytesByTransport = std::array<uint64_t, kTransports>;

const char* transport_name(
    Transport transport) noexcept;  // "local", "tcp", "tcp+tls", "rdma", or as it was made
// The transport of that name, made when there is none. Throws limit_exceeded beyond kTransports.
Transport transport_named(const std::string& name);

struct TransportCapabilities {
  Transport transport = Transport::local;  // that a batch submitted now would take
  bool one_sided = false;                  // the peer's CPU takes no part
  bool zero_copy_local = false;            // map() gives the base's own memory
  size_t max_read_bytes = 0;
  size_t max_batch_reads = 0;
};

struct TransportStats {
  uint64_t batches = 0, reads = 0, bytes = 0, failures = 0, retries = 0, reconnects = 0, fallbacks = 0;
  uint64_t refused_tokens = 0;      // connections that the peer refused for their token
  uint64_t breaks = 0;              // connections that ended by an error, not by close or eviction
  BytesByTransport by_transport{};  // `bytes`, by what carried them
};

// One submitted batch, used by one thread. Once it is destroyed nothing writes into the destinations any
// more; that may block until the device has ended reads in flight, but never on the peer.
class ReadBatch {
 public:
  virtual ~ReadBatch() = default;
  virtual bool wait(std::chrono::nanoseconds timeout) = 0;  // true when every read has ended
  virtual Code status(size_t i) const = 0;                  // per read, valid after wait() said true
  virtual Transport carried_by(size_t i) const = 0;         // of a read that is ok
};

// Throws limit_exceeded or invalid_argument for a batch that no transport takes. Every reader calls it first.
void check_reads(std::span<const ReadRequest> reads);

class PageReader {
 public:
  virtual ~PageReader() = default;
  virtual TransportCapabilities capabilities() const = 0;
  virtual std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) = 0;
  virtual TransportStats stats() const = 0;
  virtual void close() = 0;  // idempotent; reads in flight end with peer_unreachable
  // Whether a batch submitted now finds a connection; a reader without connections always does.
  virtual bool connected() const { return true; }
  // Waits for a connection that was lost and is being made anew, as long as it can be expected soon. False at
  // once where nobody makes one.
  virtual bool await_connection(std::chrono::nanoseconds /*timeout*/) { return false; }
  // After the peer was started anew: where it is now and what it granted. Transports without these ignore it.
  virtual void readdress(const std::string& /*address*/, std::span<const std::byte> /*token*/) {}
  // Makes the connections anew that there are, with the present token and certificate; what is read over the
  // old ones meanwhile ends there. False when the peer did not take one of them. Blocks for some seconds at
  // most.
  virtual bool reconnect() { return true; }

  // submit + wait; the first failed read's code, ok when all came. Blocks.
  Code read(std::span<const ReadRequest> reads, std::chrono::nanoseconds timeout);
};

}  // namespace medes
