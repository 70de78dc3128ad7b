#include "transport/rdma/rdma_server.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "common/error.h"
#include "store/shm_file.h"

namespace medes {

// Kernels before 6.2 ask for write access to the pages of every registration, also of one that remote sides
// may only read, which a read-only shared mapping refuses with EFAULT. A second, writable mapping of the same
// file costs address space only: the pages are the slab's own, and nothing writes through it.
struct RdmaMapping {
  explicit RdmaMapping(const Slab& slab)
      : fd(slab.path(), true), mapping(fd.get(), 0, slab.file_bytes(), true, slab.path()) {}
  ShmFd fd;
  ShmMapping mapping;
};

RdmaServer::RdmaServer(std::shared_ptr<RdmaDevice> device, size_t connections_max)
    : device_(std::move(device)), connections_max_(connections_max), cq_(device_->make_cq(16, nullptr)) {}

RdmaServer::~RdmaServer() { close(); }

void RdmaServer::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  connections_.clear();
  slabs_.clear();
  domains_.clear();
}

RdmaServer::Domain& RdmaServer::use_domain(const std::string& name) {
  if (closed_) throw Error(Code::peer_unreachable, "the RDMA server is closed", name);
  Domain& domain = domains_[name];
  if (!domain.pd) domain.pd = device_->make_pd();
  ++domain.users;
  return domain;
}

void RdmaServer::release_domain(const std::string& name) {
  const auto found = domains_.find(name);
  if (found != domains_.end() && --found->second.users == 0) domains_.erase(found);
}

void RdmaServer::add_slab(std::shared_ptr<Slab> slab, const std::string& domain_name) {
  if (!slab) throw Error(Code::invalid_argument, "no slab");
  std::lock_guard lock(mutex_);
  const uint64_t id = slab->base_id();
  if (slabs_.contains(id))
    throw Error(Code::already_exists, "base is served already", "base " + std::to_string(id));
  Domain& domain = use_domain(domain_name);
  Registration entry;
  entry.domain = domain_name;
  try {
    try {
      entry.mr = device_->register_memory(domain.pd.get(), slab->bytes().data(), slab->bytes().size(),
                                          IBV_ACCESS_REMOTE_READ);
    } catch (const Error&) {
      entry.mapping = std::make_unique<RdmaMapping>(*slab);
      // Not counted from the end: what the agent says of the slab lies behind its pages.
      const Bytes pages = entry.mapping->mapping.bytes().subspan(slab->pages_begin(), slab->bytes().size());
      entry.mr =
          device_->register_memory(domain.pd.get(), pages.data(), pages.size(), IBV_ACCESS_REMOTE_READ);
    }
  } catch (...) {
    release_domain(domain_name);
    throw;
  }
  entry.slab = std::move(slab);
  slabs_.emplace(id, std::move(entry));
}

bool RdmaServer::remove_slab(uint64_t base_id) {
  std::lock_guard lock(mutex_);
  const auto found = slabs_.find(base_id);
  if (found == slabs_.end()) return false;
  const std::string domain = found->second.domain;
  slabs_.erase(found);
  release_domain(domain);
  return true;
}

std::optional<RdmaRegion> RdmaServer::region(uint64_t base_id, const std::string& domain) const {
  std::lock_guard lock(mutex_);
  const auto found = slabs_.find(base_id);
  if (found == slabs_.end() || found->second.domain != domain) return std::nullopt;
  const ibv_mr& mr = *found->second.mr;
  return RdmaRegion{base_id, reinterpret_cast<uint64_t>(mr.addr), mr.length, mr.rkey};
}

std::pair<uint64_t, RdmaEndpoint> RdmaServer::accept(const RdmaEndpoint& remote,
                                                     const std::string& domain_name,
                                                     const std::string& peer) {
  std::lock_guard lock(mutex_);
  if (connections_.size() >= connections_max_) {
    ++refused_;
    throw Error(Code::busy, "RDMA connections are at their limit of " + std::to_string(connections_max_),
                peer);
  }
  Domain& domain = use_domain(domain_name);
  try {
    const uint32_t psn = random_psn();
    Connection connection{domain_name, peer, device_->make_qp(domain.pd.get(), cq_.get(), 1, true)};
    device_->make_responder(connection.qp.get(), remote);
    const RdmaEndpoint local = device_->endpoint(connection.qp.get(), psn);
    const uint64_t id = next_id_++;
    connections_.emplace(id, std::move(connection));
    ++total_;
    return {id, local};
  } catch (...) {
    release_domain(domain_name);
    throw;
  }
}

bool RdmaServer::disconnect(uint64_t connection_id) {
  std::lock_guard lock(mutex_);
  const auto found = connections_.find(connection_id);
  if (found == connections_.end()) return false;
  const std::string domain = found->second.domain;
  connections_.erase(found);
  release_domain(domain);
  return true;
}

size_t RdmaServer::disconnect_peer(const std::string& peer) {
  std::lock_guard lock(mutex_);
  size_t ended = 0;
  for (auto it = connections_.begin(); it != connections_.end();) {
    if (it->second.peer != peer) {
      ++it;
      continue;
    }
    const std::string domain = it->second.domain;
    it = connections_.erase(it);
    release_domain(domain);
    ++ended;
  }
  return ended;
}

RdmaServerStats RdmaServer::stats() const {
  std::lock_guard lock(mutex_);
  RdmaServerStats out;
  out.slabs = slabs_.size();
  for (const auto& [id, entry] : slabs_) out.registered_bytes += entry.mr->length;
  out.domains = domains_.size();
  out.connections_open = connections_.size();
  out.connections_total = total_;
  out.refused = refused_;
  return out;
}

}  // namespace medes
