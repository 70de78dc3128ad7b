// One RDMA device and port, opened, and the objects made on it, each owned by one handle. Reliable-connected
// queue pairs are set up from endpoints that the two sides exchange out of band (PeerService.OpenPages).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "transport/rdma/rdma_verbs.h"

namespace medes {

// What a side tells the other to be connected to. Travels as RdmaEndpoint of peer.proto.
struct RdmaEndpoint {
  uint32_t queue_pair_number = 0;
  uint32_t packet_sequence_number = 0;  // 24 bits
  std::array<uint8_t, 16> gid{};
  uint32_t lid = 0;            // InfiniBand links only
  uint32_t path_mtu = 0;       // bytes
  uint32_t max_rd_atomic = 0;  // READs it can start (initiator) or hold (responder) at a time
  uint32_t port = 0;
};

// Where a slab is for READs. Travels as RdmaRegion.
struct RdmaRegion {
  uint64_t base_id = 0;
  uint64_t address = 0;
  uint64_t length = 0;
  uint32_t remote_key = 0;
};

struct RdmaDeviceInfo {
  std::string name;
  uint32_t port = 0;
  bool active = false;
  std::string link_layer;  // "ethernet", "infiniband"
  int gid_index = -1;      // of the GID that would be used, -1: none
  std::array<uint8_t, 16> gid{};
  uint32_t max_rd_atomic = 0;
  uint32_t queue_pairs_max = 0;
  uint32_t memory_regions_max = 0;
};

// All ports of all devices; empty without devices. Throws unsupported without the library.
std::vector<RdmaDeviceInfo> rdma_devices();

template <typename T, int (*Destroy)(T*)>
struct VerbsDeleter {
  void operator()(T* object) const { Destroy(object); }
};
namespace rdma_detail {
inline int close_device(ibv_context* x) { return verbs().close_device(x); }
inline int dealloc_pd(ibv_pd* x) { return verbs().dealloc_pd(x); }
inline int dereg_mr(ibv_mr* x) { return verbs().dereg_mr(x); }
inline int destroy_channel(ibv_comp_channel* x) { return verbs().destroy_comp_channel(x); }
inline int destroy_cq(ibv_cq* x) { return verbs().destroy_cq(x); }
inline int destroy_qp(ibv_qp* x) { return verbs().destroy_qp(x); }
}  // namespace rdma_detail
using ContextHandle = std::unique_ptr<ibv_context, VerbsDeleter<ibv_context, rdma_detail::close_device>>;
using PdHandle = std::unique_ptr<ibv_pd, VerbsDeleter<ibv_pd, rdma_detail::dealloc_pd>>;
using MrHandle = std::unique_ptr<ibv_mr, VerbsDeleter<ibv_mr, rdma_detail::dereg_mr>>;
using ChannelHandle =
    std::unique_ptr<ibv_comp_channel, VerbsDeleter<ibv_comp_channel, rdma_detail::destroy_channel>>;
using CqHandle = std::unique_ptr<ibv_cq, VerbsDeleter<ibv_cq, rdma_detail::destroy_cq>>;
using QpHandle = std::unique_ptr<ibv_qp, VerbsDeleter<ibv_qp, rdma_detail::destroy_qp>>;

class RdmaDevice {
 public:
  // `name` empty: the first device with an active port; port 0: its first active port. Throws unsupported.
  RdmaDevice(const std::string& name, uint32_t port);

  const std::string& name() const { return name_; }
  uint32_t port() const { return port_; }
  const std::array<uint8_t, 16>& gid() const { return gid_; }
  const ibv_device_attr& attributes() const { return attributes_; }

  PdHandle make_pd();
  ChannelHandle make_channel();
  CqHandle make_cq(int entries, ibv_comp_channel* channel);
  // Throws limit_exceeded (locked memory), io.
  MrHandle register_memory(ibv_pd* pd, const void* address, size_t length, int access);

  // A queue pair in state INIT. `remote_read`: the other side may READ through it.
  QpHandle make_qp(ibv_pd* pd, ibv_cq* cq, uint32_t send_depth, bool remote_read);
  RdmaEndpoint endpoint(const ibv_qp* qp, uint32_t psn) const;
  // INIT → RTR: a queue pair in this state answers READs. Throws invalid_argument, io.
  void make_responder(ibv_qp* qp, const RdmaEndpoint& remote) const;
  // RTR → RTS: may start READs itself, at most as many at a time as the remote side can hold.
  void make_initiator(ibv_qp* qp, const RdmaEndpoint& remote, uint32_t psn) const;

 private:
  ContextHandle context_;
  std::string name_;
  uint32_t port_ = 0;
  ibv_device_attr attributes_{};
  ibv_port_attr port_attributes_{};
  int gid_index_ = -1;
  std::array<uint8_t, 16> gid_{};
};

uint32_t random_psn();

}  // namespace medes
