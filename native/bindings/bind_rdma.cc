#include <nanobind/stl/pair.h>

#include "bindings/bindings.h"
#include "common/error.h"
#include "transport/rdma/rdma_client.h"
#include "transport/rdma/rdma_reader.h"
#include "transport/rdma/rdma_server.h"

namespace medes::bindings {

namespace {

std::chrono::nanoseconds seconds(double s) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(s));
}

nb::bytes gid_bytes(const std::array<uint8_t, 16>& gid) {
  return nb::bytes(reinterpret_cast<const char*>(gid.data()), gid.size());
}

// One device, both sides of RDMA on it: what the agent holds.
struct RdmaContext {
  RdmaContext(const std::string& name, uint32_t port, size_t buffer_bytes, size_t client_max,
              size_t server_max)
      : device(std::make_shared<RdmaDevice>(name, port)),
        server(device, server_max),
        client(std::make_shared<RdmaClient>(device, buffer_bytes, client_max)) {}
  std::shared_ptr<RdmaDevice> device;
  RdmaServer server;
  std::shared_ptr<RdmaClient> client;
};

nb::list device_list() {
  std::vector<RdmaDeviceInfo> devices;
  {
    nb::gil_scoped_release release;
    devices = rdma_devices();
  }
  nb::list out;
  for (const RdmaDeviceInfo& info : devices) {
    nb::dict d;
    d["name"] = info.name;
    d["port"] = info.port;
    d["active"] = info.active;
    d["link_layer"] = info.link_layer;
    d["gid_index"] = info.gid_index;
    d["gid"] = gid_bytes(info.gid);
    d["max_rd_atomic"] = info.max_rd_atomic;
    d["queue_pairs_max"] = info.queue_pairs_max;
    d["memory_regions_max"] = info.memory_regions_max;
    out.append(d);
  }
  return out;
}

void register_values(nb::module_& m) {
  nb::class_<RdmaEndpoint>(m, "RdmaEndpoint")
      .def(
          "__init__",
          [](RdmaEndpoint* self, uint32_t qpn, uint32_t psn, const nb::bytes& gid, uint32_t lid,
             uint32_t path_mtu, uint32_t max_rd_atomic, uint32_t port) {
            if (gid.size() != 16) throw Error(Code::invalid_argument, "a GID is 16 bytes");
            new (self) RdmaEndpoint{qpn, psn, {}, lid, path_mtu, max_rd_atomic, port};
            std::memcpy(self->gid.data(), gid.c_str(), 16);
          },
          nb::arg("queue_pair_number"), nb::arg("packet_sequence_number"), nb::arg("gid"), nb::arg("lid"),
          nb::arg("path_mtu"), nb::arg("max_rd_atomic"), nb::arg("port"))
      .def_ro("queue_pair_number", &RdmaEndpoint::queue_pair_number)
      .def_ro("packet_sequence_number", &RdmaEndpoint::packet_sequence_number)
      .def_prop_ro("gid", [](const RdmaEndpoint& e) { return gid_bytes(e.gid); })
      .def_ro("lid", &RdmaEndpoint::lid)
      .def_ro("path_mtu", &RdmaEndpoint::path_mtu)
      .def_ro("max_rd_atomic", &RdmaEndpoint::max_rd_atomic)
      .def_ro("port", &RdmaEndpoint::port);
  nb::class_<RdmaRegion>(m, "RdmaRegion")
      .def(
          "__init__",
          [](RdmaRegion* self, uint64_t base_id, uint64_t address, uint64_t length, uint32_t remote_key) {
            new (self) RdmaRegion{base_id, address, length, remote_key};
          },
          nb::arg("base_id"), nb::arg("address"), nb::arg("length"), nb::arg("remote_key"))
      .def_ro("base_id", &RdmaRegion::base_id)
      .def_ro("address", &RdmaRegion::address)
      .def_ro("length", &RdmaRegion::length)
      .def_ro("remote_key", &RdmaRegion::remote_key);
}

nb::dict context_stats(const RdmaContext& c) {
  const RdmaServerStats s = c.server.stats();
  nb::dict out;
  out["slabs"] = s.slabs;
  out["registered_bytes"] = s.registered_bytes;
  out["domains"] = s.domains;
  out["server_connections_open"] = s.connections_open;
  out["server_connections_total"] = s.connections_total;
  out["refused"] = s.refused;
  out["client_connections_open"] = c.client->connections();
  out["client_evictions"] = c.client->evictions();
  return out;
}

void register_context(nb::module_& m) {
  nb::class_<RdmaContext>(m, "RdmaContext")
      .def(nb::init<const std::string&, uint32_t, size_t, size_t, size_t>(), nb::arg("device") = "",
           nb::arg("port") = 0, nb::kw_only(), nb::arg("buffer_bytes") = size_t{32} << 20,
           nb::arg("client_connections_max") = 256, nb::arg("server_connections_max") = 1024,
           nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("device", [](const RdmaContext& c) { return c.device->name(); })
      .def_prop_ro("port", [](const RdmaContext& c) { return c.device->port(); })
      .def_prop_ro("gid", [](const RdmaContext& c) { return gid_bytes(c.device->gid()); })
      .def(
          "add_slab",
          [](RdmaContext& c, std::shared_ptr<Slab> slab, const std::string& domain) {
            c.server.add_slab(std::move(slab), domain);
          },
          nb::arg("slab"), nb::arg("domain"), nb::call_guard<nb::gil_scoped_release>())
      .def(
          "remove_slab", [](RdmaContext& c, uint64_t id) { return c.server.remove_slab(id); },
          nb::arg("base_id"), nb::call_guard<nb::gil_scoped_release>())
      .def(
          "region",
          [](const RdmaContext& c, uint64_t id, const std::string& domain) {
            return c.server.region(id, domain);
          },
          nb::arg("base_id"), nb::arg("domain"))
      .def(
          "accept",
          [](RdmaContext& c, const RdmaEndpoint& remote, const std::string& domain, const std::string& peer) {
            return c.server.accept(remote, domain, peer);
          },
          nb::arg("remote"), nb::arg("domain"), nb::arg("peer"), nb::call_guard<nb::gil_scoped_release>())
      .def(
          "disconnect", [](RdmaContext& c, uint64_t id) { return c.server.disconnect(id); },
          nb::arg("connection_id"), nb::call_guard<nb::gil_scoped_release>())
      .def(
          "disconnect_peer",
          [](RdmaContext& c, const std::string& peer) { return c.server.disconnect_peer(peer); },
          nb::arg("peer"), nb::call_guard<nb::gil_scoped_release>())
      .def("reader", [](RdmaContext& c) { return c.client->make_reader(); })
      .def(
          "take_wanted",
          [](RdmaContext& c, double timeout_s) { return c.client->take_wanted(seconds(timeout_s)); },
          nb::arg("timeout_s"), nb::call_guard<nb::gil_scoped_release>())
      .def(
          "evict_idle", [](RdmaContext& c, double idle_s) { return c.client->evict_idle(seconds(idle_s)); },
          nb::arg("idle_s"), nb::call_guard<nb::gil_scoped_release>())
      .def("stats", &context_stats)
      .def(
          "close",
          [](RdmaContext& c) {
            c.client->close();
            c.server.close();
          },
          nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace

void register_rdma(nb::module_& m) {
  m.def("rdma_devices", &device_list);
  register_values(m);
  register_context(m);
  nb::class_<RdmaReader, PageReader>(m, "RdmaReader")
      .def_prop_ro("id", &RdmaReader::id)
      .def_prop_ro("connected", &RdmaReader::connected)
      .def("offer", &RdmaReader::offer, nb::call_guard<nb::gil_scoped_release>())
      .def("connect", &RdmaReader::connect, nb::arg("remote"), nb::call_guard<nb::gil_scoped_release>())
      .def("add_region", &RdmaReader::add_region, nb::arg("region"))
      .def(
          "keep_regions",
          [](RdmaReader& r, const std::vector<uint64_t>& base_ids) { return r.keep_regions(base_ids); },
          nb::arg("base_ids"));
}

}  // namespace medes::bindings
