// The passive side of RDMA page reads: slabs registered once, for READs only, and queue pairs that answer
// them without this node's CPU. Each dedup domain has a protection domain of its own, so that the adapter
// itself refuses a READ of another domain's memory, even with a guessed key. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "store/slab.h"
#include "transport/rdma/rdma_device.h"

namespace medes {

struct RdmaServerStats {
  uint64_t slabs = 0, registered_bytes = 0, domains = 0;
  uint64_t connections_open = 0, connections_total = 0, refused = 0;
};

class RdmaServer {
 public:
  RdmaServer(std::shared_ptr<RdmaDevice> device, size_t connections_max);
  ~RdmaServer();

  // Registers the slab's pages (locks them in memory). Throws already_exists, limit_exceeded, io.
  void add_slab(std::shared_ptr<Slab> slab, const std::string& domain);
  // Ends the registration: READs under way or later fail with a remote access error.
  bool remove_slab(uint64_t base_id);
  // Null when there is no such slab in that domain. To be handed to authenticated peers only.
  std::optional<RdmaRegion> region(uint64_t base_id, const std::string& domain) const;

  // Connects a new queue pair that reads `domain` and nothing else. The caller has authenticated `peer`.
  // Throws busy at connections_max, invalid_argument, io. The id is for disconnect().
  std::pair<uint64_t, RdmaEndpoint> accept(const RdmaEndpoint& remote, const std::string& domain,
                                           const std::string& peer);
  bool disconnect(uint64_t connection_id);
  size_t disconnect_peer(const std::string& peer);  // a node that is gone; returns how many
  RdmaServerStats stats() const;
  void close();  // idempotent

 private:
  // Members are destroyed in reverse order: queue pairs and registrations before the protection domain.
  struct Domain {
    PdHandle pd;
    size_t users = 0;  // slabs and connections
  };
  struct Registration {
    std::shared_ptr<Slab> slab;
    std::string domain;
    std::unique_ptr<struct RdmaMapping> mapping;
    MrHandle mr;
  };
  struct Connection {
    std::string domain, peer;
    QpHandle qp;
  };
  Domain& use_domain(const std::string& name);
  void release_domain(const std::string& name);

  std::shared_ptr<RdmaDevice> device_;
  const size_t connections_max_;
  mutable std::mutex mutex_;
  bool closed_ = false;
  CqHandle cq_;  // queue pairs need one; a responder to READs never completes anything
  std::map<std::string, Domain> domains_;
  std::unordered_map<uint64_t, Registration> slabs_;
  std::unordered_map<uint64_t, Connection> connections_;
  uint64_t next_id_ = 1, total_ = 0, refused_ = 0;
};

}  // namespace medes
