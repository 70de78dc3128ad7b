#include <nanobind/stl/tuple.h>

#include "bases/base_set.h"
#include "bindings/bindings.h"
#include "bindings/callback_reader.h"
#include "common/limits.h"
#include "store/slab.h"
#include "transport/failing_reader.h"
#include "transport/fallback_reader.h"
#include "transport/local/local_reader.h"
#include "transport/page_reader.h"
#include "transport/rdma/rdma_loop.h"
#include "transport/read_loop.h"
#include "transport/retry_reader.h"
#include "transport/tcp/page_server.h"
#include "transport/tcp/tcp_reader.h"

namespace medes::bindings {

namespace {

std::chrono::nanoseconds seconds(double s) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(s));
}

nb::bytes read_bytes(PageReader& reader, uint64_t base_id, uint64_t offset, uint64_t length,
                     double timeout_s) {
  if (length == 0 || length > kMaxReadBytes) throw Error(Code::limit_exceeded, "length of one read");
  std::vector<std::byte> buffer(length);
  Code code;
  {
    nb::gil_scoped_release release;
    const ReadRequest request{base_id, offset, static_cast<uint32_t>(length), buffer.data()};
    code = reader.read({&request, 1}, seconds(timeout_s));
  }
  if (code != Code::ok) throw Error(code, "page read failed", "base " + std::to_string(base_id));
  return to_bytes(buffer);
}

using ReadTuple = std::tuple<uint64_t, uint64_t, uint64_t>;  // base id, offset, length

// One batch; per read its status and, where ok, its bytes.
nb::list read_batch(PageReader& reader, const std::vector<ReadTuple>& reads, double timeout_s) {
  std::vector<std::vector<std::byte>> buffers;
  std::vector<ReadRequest> requests;
  std::vector<Code> status(reads.size(), Code::deadline_exceeded);
  {
    nb::gil_scoped_release release;
    for (const auto& [base_id, offset, length] : reads) {
      if (length == 0 || length > kMaxReadBytes) throw Error(Code::limit_exceeded, "length of one read");
      buffers.emplace_back(length);
      requests.push_back({base_id, offset, static_cast<uint32_t>(length), buffers.back().data()});
    }
    auto batch = reader.submit(requests);
    if (batch->wait(seconds(timeout_s)))
      for (size_t i = 0; i < reads.size(); ++i) status[i] = batch->status(i);
  }
  nb::list out;
  for (size_t i = 0; i < reads.size(); ++i)
    out.append(nb::make_tuple(code_name(status[i]),
                              status[i] == Code::ok ? to_bytes(buffers[i]) : nb::bytes("", 0)));
  return out;
}

nb::dict stats_dict(const TransportStats& s) {
  nb::dict out;
  out["batches"] = s.batches;
  out["reads"] = s.reads;
  out["bytes"] = s.bytes;
  out["failures"] = s.failures;
  out["retries"] = s.retries;
  out["reconnects"] = s.reconnects;
  out["fallbacks"] = s.fallbacks;
  out["breaks"] = s.breaks;
  out["refused_tokens"] = s.refused_tokens;
  return out;
}

// Transport → amount in units of `unit` bytes, of those that carried any.
nb::dict by_transport(const BytesByTransport& bytes, uint64_t unit) {
  nb::dict out;
  for (size_t i = 0; i < kTransports; ++i)
    if (bytes[i] > 0) out[transport_name(static_cast<Transport>(i))] = bytes[i] / unit;
  return out;
}

void register_base_set(nb::module_& m) {
  nb::class_<KeptPages>(m, "KeptPages")
      .def(nb::init<uint64_t>(), nb::arg("limit_bytes"))
      .def_prop_ro("bytes", &KeptPages::bytes)
      .def_prop_ro("base_ids", &KeptPages::base_ids)
      .def_prop_ro("used_pages", &KeptPages::used_pages)
      .def("drop", nb::overload_cast<uint64_t>(&KeptPages::drop), nb::arg("base_id"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("clear", &KeptPages::clear, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<BaseSet>(m, "BaseSet")
      .def(nb::init<>())
      .def("keep_in", &BaseSet::keep_in, nb::arg("pages"), nb::arg("domain"))
      .def("keep_wanted", &BaseSet::keep_wanted, nb::call_guard<nb::gil_scoped_release>())
      .def("add_local", &BaseSet::add_local, nb::arg("slab"))
      .def(
          "add_remote",
          [](BaseSet& set, uint64_t base_id, uint64_t page_count,
             const std::vector<std::pair<uint64_t, uint64_t>>& ranges, bool value_only,
             std::shared_ptr<PageReader> reader) {
            AddressSpace space;
            for (const auto& [begin, end] : ranges) space.ranges.push_back({begin, end});
            space.value_only = value_only;
            return set.add_remote(base_id, page_count, std::move(space), std::move(reader));
          },
          nb::arg("base_id"), nb::arg("page_count"), nb::arg("ranges"), nb::arg("value_only"),
          nb::arg("reader"))
      .def_prop_ro("base_ids",
                   [](const BaseSet& set) {
                     std::vector<uint64_t> ids;
                     for (const BaseView& view : set.views()) ids.push_back(view.base_id);
                     return ids;
                   })
      .def_prop_ro("remote_pages_read", &BaseSet::remote_pages_read)
      .def_prop_ro("remote_read_bytes", &BaseSet::remote_read_bytes)
      .def_prop_ro(
          "remote_pages_by_transport",
          [](const BaseSet& set) { return by_transport(set.remote_bytes_by_transport(), kPageBytes); })
      .def("drop_remote", &BaseSet::drop_remote, nb::call_guard<nb::gil_scoped_release>());
}

TlsPem tls_pem(const nb::bytes& certificate, const nb::bytes& private_key, const nb::bytes& ca) {
  auto text = [](const nb::bytes& b) { return std::string(b.c_str(), b.size()); };
  return {text(certificate), text(private_key), text(ca)};
}

void register_tls_identity(nb::module_& m) {
  nb::class_<TlsIdentity>(m, "TlsIdentity")
      .def(
          "__init__",
          [](TlsIdentity* self, const nb::bytes& certificate, const nb::bytes& private_key,
             const nb::bytes& ca) { new (self) TlsIdentity(tls_pem(certificate, private_key, ca)); },
          nb::arg("certificate"), nb::arg("private_key"), nb::arg("ca"))
      .def(
          "replace",
          [](TlsIdentity& self, const nb::bytes& certificate, const nb::bytes& private_key,
             const nb::bytes& ca) { self.replace(tls_pem(certificate, private_key, ca)); },
          nb::arg("certificate"), nb::arg("private_key"), nb::arg("ca"));
}

nb::dict server_stats(const PageServer& server) {
  const PageServerStats s = server.stats();
  nb::dict out;
  out["connections_open"] = s.connections_open;
  out["connections_total"] = s.connections_total;
  out["refused"] = s.refused;
  out["refused_certificates"] = s.refused_certificates;
  out["refused_tokens"] = s.refused_tokens;
  out["refused_nodes"] = s.refused_nodes;
  out["ended_tokens"] = s.ended_tokens;
  out["malformed"] = s.malformed;
  out["batches"] = s.batches;
  out["reads"] = s.reads;
  out["bytes"] = s.bytes;
  out["failed_reads"] = s.failed_reads;
  out["cpu_us"] = s.cpu_us;
  return out;
}

void register_page_server(nb::module_& m) {
  nb::class_<PageServer>(m, "PageServer")
      .def(
          "__init__",
          [](PageServer* self, const std::string& host, int port, std::shared_ptr<TlsIdentity> identity) {
            new (self) PageServer(host, port, std::move(identity));
          },
          nb::arg("host"), nb::arg("port") = 0, nb::kw_only(), nb::arg("identity") = nb::none())
      .def_prop_ro("address", &PageServer::address)
      .def(
          "add_slab",
          [](PageServer& s, std::shared_ptr<Slab> slab, const std::string& domain) {
            s.slabs().add(std::move(slab), domain);
          },
          nb::arg("slab"), nb::arg("domain"))
      .def(
          "remove_slab", [](PageServer& s, uint64_t base_id) { s.slabs().remove(base_id); },
          nb::arg("base_id"))
      .def(
          "grant",
          [](PageServer& s, const nb::bytes& token, const std::string& domain, const std::string& peer,
             std::optional<double> valid_s) {
            s.slabs().grant(wire::token_from(as_bytes(token)), domain, peer,
                            valid_s ? Clock::now() + seconds(*valid_s) : Grant::Time::max());
          },
          nb::arg("token"), nb::arg("domain"), nb::arg("peer"), nb::arg("valid_s") = nb::none())
      .def(
          "revoke",
          [](PageServer& s, const nb::bytes& token) { s.revoke(wire::token_from(as_bytes(token))); },
          nb::arg("token"))
      .def("end_connections", &PageServer::end_connections, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("grants", [](PageServer& s) { return s.slabs().grants(); })
      .def("stats", &server_stats)
      .def("close", &PageServer::close, nb::call_guard<nb::gil_scoped_release>());
}

void register_readers(nb::module_& m) {
  m.def(
      "tcp_reader",
      [](const std::string& address, const nb::bytes& token, size_t streams,
         std::shared_ptr<TlsIdentity> identity, const std::string& server_name, bool connect_now,
         bool check_digests, int attempts, int wake) -> std::shared_ptr<PageReader> {
        TcpReaderOptions options{.address = address,
                                 .token = wire::token_from(as_bytes(token)),
                                 .streams = streams,
                                 .identity = std::move(identity),
                                 .server_name = server_name,
                                 .connect_now = connect_now,
                                 .wake = wake,
                                 .check_digests = check_digests};
        nb::gil_scoped_release release;
        std::shared_ptr<PageReader> reader = std::make_shared<TcpReader>(std::move(options));
        return attempts > 1 ? make_retry_reader(std::move(reader), {.attempts = attempts}) : reader;
      },
      nb::arg("address"), nb::arg("token"), nb::kw_only(), nb::arg("streams") = 1,
      nb::arg("identity") = nb::none(), nb::arg("server_name") = "", nb::arg("connect_now") = true,
      nb::arg("check_digests") = true, nb::arg("attempts") = 4, nb::arg("wake") = -1);
  m.def(
      "local_reader",
      [](const std::vector<std::shared_ptr<Slab>>& slabs) { return make_local_reader(slabs); },
      nb::arg("slabs"));
  m.def("fallback_reader", &make_fallback_reader, nb::arg("first"), nb::arg("second"));
  m.def("callback_reader", &make_callback_reader, nb::arg("name"), nb::arg("read"));
  m.def(
      "retry_reader",
      [](std::shared_ptr<PageReader> reader, int attempts) {
        return make_retry_reader(std::move(reader), {.attempts = attempts});
      },
      nb::arg("reader"), nb::arg("attempts") = 4);
  m.def(
      "failing_reader",
      [](std::shared_ptr<PageReader> reader, uint64_t seed, double drop, double fail, double corrupt,
         bool corrupt_found, uint32_t delay_max_us, bool reorder, uint64_t die_after_reads) {
        return make_failing_reader(std::move(reader), {seed, drop, fail, corrupt, corrupt_found, delay_max_us,
                                                       reorder, die_after_reads});
      },
      nb::arg("reader"), nb::kw_only(), nb::arg("seed") = 1, nb::arg("drop") = 0.0, nb::arg("fail") = 0.0,
      nb::arg("corrupt") = 0.0, nb::arg("corrupt_found") = false, nb::arg("delay_max_us") = 0,
      nb::arg("reorder") = false, nb::arg("die_after_reads") = 0);
}

nb::dict loop_times(const LoopTimes& times) {
  nb::dict out;
  out["latency_us"] = nb::cast(times.latency_us);
  out["wall_s"] = times.wall_s;
  out["cpu_s"] = times.cpu_s;
  out["bytes"] = times.bytes;
  return out;
}

void register_loops(nb::module_& m) {
  m.def(
      "time_reads",
      [](PageReader& reader, const Slab& slab, const std::vector<uint64_t>& offsets, uint32_t length,
         size_t rounds, size_t depth) {
        LoopTimes times;
        {
          nb::gil_scoped_release release;
          times = time_reads(reader, slab, offsets, length, rounds, depth);
        }
        return loop_times(times);
      },
      nb::arg("reader"), nb::arg("slab"), nb::arg("offsets"), nb::arg("length"), nb::arg("rounds"),
      nb::arg("depth") = 1);
  m.def(
      "time_memcpy",
      [](const Slab& slab, const std::vector<uint64_t>& offsets, uint32_t length, size_t rounds,
         size_t depth) {
        LoopTimes times;
        {
          nb::gil_scoped_release release;
          times = time_memcpy(slab, offsets, length, rounds, depth);
        }
        return loop_times(times);
      },
      nb::arg("slab"), nb::arg("offsets"), nb::arg("length"), nb::arg("rounds"), nb::arg("depth") = 1);
  m.def(
      "time_socket",
      [](const Slab& slab, const std::vector<uint64_t>& offsets, uint32_t length, size_t rounds,
         size_t depth) {
        LoopTimes times;
        {
          nb::gil_scoped_release release;
          times = time_socket(slab, offsets, length, rounds, depth);
        }
        return loop_times(times);
      },
      nb::arg("slab"), nb::arg("offsets"), nb::arg("length"), nb::arg("rounds"), nb::arg("depth") = 1);
  m.def(
      "time_verbs",
      [](std::shared_ptr<Slab> slab, const std::vector<uint64_t>& offsets, uint32_t length, size_t rounds,
         size_t depth) {
        LoopTimes times;
        {
          nb::gil_scoped_release release;
          times = time_verbs(std::move(slab), offsets, length, rounds, depth);
        }
        return loop_times(times);
      },
      nb::arg("slab"), nb::arg("offsets"), nb::arg("length"), nb::arg("rounds"), nb::arg("depth") = 1);
}

}  // namespace

void register_transport(nb::module_& m) {
  nb::class_<PageReader>(m, "PageReader")
      .def_prop_ro("transport",
                   [](const PageReader& r) { return transport_name(r.capabilities().transport); })
      .def("read", &read_bytes, nb::arg("base_id"), nb::arg("offset"), nb::arg("length"),
           nb::arg("timeout_s") = 10.0)
      .def("read_batch", &read_batch, nb::arg("reads"), nb::arg("timeout_s") = 10.0)
      .def(
          "readdress",
          [](PageReader& r, const std::string& address, const nb::bytes& token) {
            const Bytes bytes = as_bytes(token);
            nb::gil_scoped_release release;
            r.readdress(address, bytes);
          },
          nb::arg("address"), nb::arg("token"))
      .def("reconnect", &PageReader::reconnect, nb::call_guard<nb::gil_scoped_release>())
      .def("stats", [](const PageReader& r) { return stats_dict(r.stats()); })
      .def_prop_ro("bytes_by_transport",
                   [](const PageReader& r) { return by_transport(r.stats().by_transport, 1); })
      .def("close", &PageReader::close, nb::call_guard<nb::gil_scoped_release>());
  register_tls_identity(m);
  register_page_server(m);
  register_readers(m);
  register_loops(m);
  register_base_set(m);
}

}  // namespace medes::bindings
