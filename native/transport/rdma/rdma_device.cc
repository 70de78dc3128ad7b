#include "transport/rdma/rdma_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "common/error.h"

namespace medes {

namespace {

constexpr uint8_t kAckTimeout = 14;  // 4.096 µs · 2^14 = 67 ms, before a retransmission
constexpr uint8_t kRetryCount = 6;   // 7 means for ever to some providers (Soft-RoCE)
constexpr uint8_t kHopLimit = 64;

struct DeviceList {
  ibv_device** devices = nullptr;
  int count = 0;
  DeviceList() { devices = verbs().get_device_list(&count); }
  ~DeviceList() {
    if (devices) verbs().free_device_list(devices);
  }
  DeviceList(const DeviceList&) = delete;
  DeviceList& operator=(const DeviceList&) = delete;
};

bool query_port(ibv_context* context, uint32_t port, ibv_port_attr& out) {
  std::memset(&out, 0, sizeof out);
  // The library's function fills the part that all versions share, which is all that is used here.
  return verbs().query_port(context, static_cast<uint8_t>(port),
                            reinterpret_cast<_compat_ibv_port_attr*>(&out)) == 0;
}

bool ipv4_mapped(const std::array<uint8_t, 16>& gid) {
  return std::all_of(gid.begin(), gid.begin() + 10, [](uint8_t b) { return b == 0; }) && gid[10] == 0xff &&
         gid[11] == 0xff;
}

bool link_local(const std::array<uint8_t, 16>& gid) { return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80; }

// The GID to use: on Ethernet RoCE v2, best an IPv4-mapped one, then a routable IPv6 one; else index 0.
int choose_gid(ibv_context* context, uint32_t port, const ibv_port_attr& attributes,
               std::array<uint8_t, 16>& out) {
  int chosen = -1, chosen_rank = -1;
  for (int i = 0; i < attributes.gid_tbl_len; ++i) {
    ibv_gid_entry entry{};
    if (verbs().query_gid_ex(context, port, static_cast<uint32_t>(i), &entry, 0, sizeof entry)) continue;
    std::array<uint8_t, 16> gid;
    std::memcpy(gid.data(), entry.gid.raw, gid.size());
    int rank = -1;
    if (attributes.link_layer == IBV_LINK_LAYER_ETHERNET) {
      if (entry.gid_type != IBV_GID_TYPE_ROCE_V2) continue;
      rank = ipv4_mapped(gid) ? 2 : link_local(gid) ? 0 : 1;
    } else if (entry.gid_type == IBV_GID_TYPE_IB) {
      rank = 0;
    }
    if (rank > chosen_rank) {
      chosen = i;
      chosen_rank = rank;
      out = gid;
    }
  }
  return chosen;
}

uint32_t mtu_bytes(ibv_mtu mtu) { return 128u << static_cast<unsigned>(mtu); }

ibv_mtu mtu_from_bytes(uint32_t bytes) {
  for (int m = IBV_MTU_4096; m > IBV_MTU_256; --m)
    if (bytes >= mtu_bytes(static_cast<ibv_mtu>(m))) return static_cast<ibv_mtu>(m);
  return IBV_MTU_256;
}

[[noreturn]] void fail(const char* what, const std::string& device) {
  throw errno_error(errno, what, device);
}

RdmaDeviceInfo describe(ibv_context* context, const char* name, uint32_t port,
                        const ibv_device_attr& device) {
  RdmaDeviceInfo info;
  info.name = name;
  info.port = port;
  ibv_port_attr attributes;
  if (!query_port(context, port, attributes)) return info;
  info.active = attributes.state == IBV_PORT_ACTIVE;
  info.link_layer = attributes.link_layer == IBV_LINK_LAYER_ETHERNET ? "ethernet" : "infiniband";
  info.gid_index = choose_gid(context, port, attributes, info.gid);
  info.max_rd_atomic = static_cast<uint32_t>(std::min(device.max_qp_rd_atom, device.max_qp_init_rd_atom));
  info.queue_pairs_max = static_cast<uint32_t>(device.max_qp);
  info.memory_regions_max = static_cast<uint32_t>(device.max_mr);
  return info;
}

}  // namespace

std::vector<RdmaDeviceInfo> rdma_devices() {
  std::vector<RdmaDeviceInfo> out;
  DeviceList list;
  for (int i = 0; i < list.count; ++i) {
    ContextHandle context(verbs().open_device(list.devices[i]));
    if (!context) continue;
    ibv_device_attr attributes{};
    if (verbs().query_device(context.get(), &attributes)) continue;
    for (uint32_t port = 1; port <= attributes.phys_port_cnt; ++port)
      out.push_back(describe(context.get(), verbs().get_device_name(list.devices[i]), port, attributes));
  }
  return out;
}

RdmaDevice::RdmaDevice(const std::string& name, uint32_t port) {
  DeviceList list;
  for (int i = 0; i < list.count && !context_; ++i) {
    const std::string candidate = verbs().get_device_name(list.devices[i]);
    if (!name.empty() && candidate != name) continue;
    ContextHandle context(verbs().open_device(list.devices[i]));
    if (!context || verbs().query_device(context.get(), &attributes_)) continue;
    for (uint32_t p = port ? port : 1; p <= (port ? port : attributes_.phys_port_cnt); ++p) {
      if (!query_port(context.get(), p, port_attributes_) || port_attributes_.state != IBV_PORT_ACTIVE)
        continue;
      gid_index_ = choose_gid(context.get(), p, port_attributes_, gid_);
      if (gid_index_ < 0) continue;
      context_ = std::move(context);
      name_ = candidate;
      port_ = p;
      break;
    }
  }
  if (!context_)
    throw Error(Code::unsupported, list.count ? "no active port with a usable GID" : "no RDMA device",
                name.empty() ? "rdma" : name,
                "`medes doctor` lists devices; Soft-RoCE: rdma link add rxe0 type rxe netdev DEV");
}

PdHandle RdmaDevice::make_pd() {
  PdHandle pd(verbs().alloc_pd(context_.get()));
  if (!pd) fail("cannot make a protection domain", name_);
  return pd;
}

ChannelHandle RdmaDevice::make_channel() {
  ChannelHandle channel(verbs().create_comp_channel(context_.get()));
  if (!channel) fail("cannot make a completion channel", name_);
  return channel;
}

CqHandle RdmaDevice::make_cq(int entries, ibv_comp_channel* channel) {
  CqHandle cq(verbs().create_cq(context_.get(), entries, nullptr, channel, 0));
  if (!cq) fail("cannot make a completion queue", name_);
  return cq;
}

MrHandle RdmaDevice::register_memory(ibv_pd* pd, const void* address, size_t length, int access) {
  MrHandle mr(verbs().reg_mr(pd, const_cast<void*>(address), length, access));
  if (mr) return mr;
  const int err = errno;
  if (err == ENOMEM)
    throw Error(Code::limit_exceeded, "cannot lock " + std::to_string(length) + " bytes for RDMA", name_,
                "raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity in the unit)");
  throw errno_error(err, "cannot register memory", name_);
}

QpHandle RdmaDevice::make_qp(ibv_pd* pd, ibv_cq* cq, uint32_t send_depth, bool remote_read) {
  ibv_qp_init_attr init{};
  init.send_cq = cq;
  init.recv_cq = cq;
  init.qp_type = IBV_QPT_RC;
  init.cap.max_send_wr = std::max<uint32_t>(send_depth, 1);
  init.cap.max_recv_wr = 1;
  init.cap.max_send_sge = 1;
  init.cap.max_recv_sge = 1;
  QpHandle qp(verbs().create_qp(pd, &init));
  if (!qp) fail("cannot make a queue pair", name_);
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = static_cast<uint8_t>(port_);
  attr.qp_access_flags = remote_read ? IBV_ACCESS_REMOTE_READ : 0;
  if (const int err = verbs().modify_qp(qp.get(), &attr,
                                        IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS))
    throw errno_error(err, "queue pair to INIT", name_);
  return qp;
}

RdmaEndpoint RdmaDevice::endpoint(const ibv_qp* qp, uint32_t psn) const {
  RdmaEndpoint out;
  out.queue_pair_number = qp->qp_num;
  out.packet_sequence_number = psn;
  out.gid = gid_;
  out.lid = port_attributes_.lid;
  out.path_mtu = mtu_bytes(port_attributes_.active_mtu);
  out.max_rd_atomic =
      static_cast<uint32_t>(std::min(attributes_.max_qp_rd_atom, attributes_.max_qp_init_rd_atom));
  out.port = port_;
  return out;
}

void RdmaDevice::make_responder(ibv_qp* qp, const RdmaEndpoint& remote) const {
  if (remote.queue_pair_number == 0 || remote.queue_pair_number > 0xffffff ||
      remote.packet_sequence_number > 0xffffff || remote.path_mtu < 256 || remote.max_rd_atomic == 0)
    throw Error(Code::invalid_argument, "malformed RDMA endpoint",
                "queue pair " + std::to_string(remote.queue_pair_number));
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTR;
  attr.path_mtu = std::min(mtu_from_bytes(remote.path_mtu), port_attributes_.active_mtu);
  attr.dest_qp_num = remote.queue_pair_number;
  attr.rq_psn = remote.packet_sequence_number;
  attr.max_dest_rd_atomic = static_cast<uint8_t>(
      std::min<uint32_t>({remote.max_rd_atomic, static_cast<uint32_t>(attributes_.max_qp_rd_atom), 255}));
  attr.min_rnr_timer = 12;
  attr.ah_attr.is_global = 1;
  std::memcpy(attr.ah_attr.grh.dgid.raw, remote.gid.data(), remote.gid.size());
  attr.ah_attr.grh.sgid_index = static_cast<uint8_t>(gid_index_);
  attr.ah_attr.grh.hop_limit = kHopLimit;
  attr.ah_attr.dlid = static_cast<uint16_t>(remote.lid);
  attr.ah_attr.port_num = static_cast<uint8_t>(port_);
  if (const int err = verbs().modify_qp(qp, &attr,
                                        IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                                            IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER))
    throw errno_error(err, "queue pair to RTR", name_);
}

void RdmaDevice::make_initiator(ibv_qp* qp, const RdmaEndpoint& remote, uint32_t psn) const {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTS;
  attr.sq_psn = psn;
  attr.timeout = kAckTimeout;
  attr.retry_cnt = kRetryCount;
  attr.rnr_retry = kRetryCount;
  attr.max_rd_atomic = static_cast<uint8_t>(std::min<uint32_t>(
      {remote.max_rd_atomic, static_cast<uint32_t>(attributes_.max_qp_init_rd_atom), 255}));
  if (const int err = verbs().modify_qp(qp, &attr,
                                        IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                            IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC))
    throw errno_error(err, "queue pair to RTS", name_);
}

uint32_t random_psn() {
  static thread_local std::mt19937 random{std::random_device{}()};
  return random() & 0xffffff;
}

}  // namespace medes
