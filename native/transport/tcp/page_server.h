// Serves slabs to peers over TCP or mutual TLS, with a thread of its own for each connection: pages go from
// the slab's mapping to the socket in one gathered send, without a copy in user space (TLS copies once, into
// the record). A peer that does not read its replies stops being read from; it never makes the server queue.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "transport/slab_directory.h"
#include "transport/tls/tls.h"

namespace medes {

struct PageServerStats {
  uint64_t connections_open = 0, connections_total = 0;
  uint64_t refused = 0;  // all refused connections, of them:
  uint64_t refused_certificates = 0, refused_tokens = 0,
           refused_nodes = 0;  // another node's token; rest: full
  uint64_t ended_tokens = 0;   // connections closed because the end of their token had come
  uint64_t malformed = 0;      // connections closed because of a broken or oversized frame
  uint64_t batches = 0, reads = 0, bytes = 0;
  uint64_t failed_reads = 0;  // answered with a status other than ok
  uint64_t cpu_us = 0;        // CPU time of the connection threads
};

class PageServer {
 public:
  // Listens at once; port 0 takes a free one. Throws invalid_argument, io.
  // Without an identity it speaks plain TCP; with one a token is taken only from the node it was granted to.
  PageServer(const std::string& host, int port, std::shared_ptr<TlsIdentity> identity);
  ~PageServer();
  PageServer(const PageServer&) = delete;
  PageServer& operator=(const PageServer&) = delete;

  std::string address() const;  // host:port as bound
  SlabDirectory& slabs();
  void revoke(const Token& token);  // also closes the connections that were opened with it
  // Ends every connection behind the requests that have come: those who may still read connect anew.
  void end_connections();
  PageServerStats stats() const;
  void close();  // idempotent; ends all connections and joins all threads

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace medes
