#include <map>

#include "bindings/bindings.h"
#include "common/error.h"
#include "dedup/encoder.h"
#include "process/fault_server.h"
#include "tracing/frozen.h"
#include "tracing/seccomp_rights.h"

namespace medes::bindings {
namespace {

const char* state_name(LiveState s) {
  switch (s) {
    case LiveState::dormant: return "dormant";
    case LiveState::restoring: return "restoring";
    case LiveState::complete: return "complete";
    case LiveState::lost: return "lost";
  }
  return "lost";
}

nb::bytes packed(const std::vector<WorkingSetEntry>& entries) {
  return to_bytes(std::as_bytes(std::span(entries)));
}

nb::dict evict_dict(const EvictResult& r) {
  nb::dict d;
  d["evicted_pages"] = r.evicted_pages;
  d["resident_pages"] = r.resident_pages;
  d["changed_pages"] = r.changed_pages;
  d["tick_pages"] = r.tick_pages;
  d["stopped_us"] = r.stopped_us;
  d["evict_us"] = r.evict_us;
  d["threads"] = r.threads;
  d["processes"] = r.processes;
  return d;
}

nb::dict reclaim_dict(const ReclaimResult& r) {
  nb::dict d;
  d["reclaimed_pages"] = r.reclaimed_pages;
  d["changed_pages"] = r.changed_pages;
  d["tick_pages"] = r.tick_pages;
  d["stopped_us"] = r.stopped_us;
  return d;
}

nb::dict restore_dict(const RestoreStats& s) {
  nb::dict d;
  d["pages_total"] = s.pages_total;
  d["pages_prefetched"] = s.pages_prefetched;
  d["pages_background"] = s.pages_background;
  d["faults_demand"] = s.faults_demand;
  d["faults_zero"] = s.faults_zero;
  d["pages_zero"] = s.pages_zero;
  d["ready_us"] = s.ready_us;
  d["complete_us"] = s.complete_us;
  d["fetch_us"] = s.fetch_us;
  d["apply_us"] = s.apply_us;
  d["place_us"] = s.place_us;
  d["remote_bytes"] = s.remote_bytes;
  d["demand_woken"] = static_cast<uint64_t>(s.demand_woken);
  d["short_of_memory"] = static_cast<uint64_t>(s.short_of_memory);
  return d;
}

std::chrono::nanoseconds timeout_of(double seconds) {
  if (!(seconds >= 0)) throw Error(Code::invalid_argument, "a timeout must not be negative");
  return std::chrono::nanoseconds(static_cast<int64_t>(std::min(seconds, 1e9) * 1e9));
}

void restore(LiveSandbox& self, bool lazy, const nb::bytes& working_set, uint64_t background_bytes_per_s) {
  RestoreOptions options;
  options.lazy = lazy;
  options.working_set = unpack_working_set(as_bytes(working_set));
  options.background_bytes_per_s = background_bytes_per_s;
  nb::gil_scoped_release release;
  self.restore(options);
}

void register_sandbox(nb::module_& m) {
  nb::class_<LiveSandbox>(m, "LiveSandbox")
      .def_prop_ro("state", [](const LiveSandbox& self) { return state_name(self.state()); })
      .def_prop_ro("evict_result", [](const LiveSandbox& self) { return evict_dict(self.evict_result()); })
      .def_prop_ro("notes", [](const LiveSandbox& self) { return self.evict_result().notes; })
      .def_prop_ro("lost_reason", &LiveSandbox::lost_reason)
      .def_prop_ro("lost_code", [](const LiveSandbox& self) { return code_name(self.lost_code()); })
      .def_prop_ro("needed",
                   [](const LiveSandbox& self) {
                     const nb::gil_scoped_release release;
                     return self.needed();
                   })
      .def("restore", &restore, nb::arg("lazy") = true, nb::arg("working_set") = nb::bytes("", 0),
           nb::arg("background_bytes_per_s") = 0)
      .def(
          "wait_ready",
          [](LiveSandbox& self, double timeout_s) {
            nb::gil_scoped_release release;
            return self.wait_ready(timeout_of(timeout_s));
          },
          nb::arg("timeout_s"))
      .def(
          "wait_complete",
          [](LiveSandbox& self, double timeout_s) {
            nb::gil_scoped_release release;
            return self.wait_complete(timeout_of(timeout_s));
          },
          nb::arg("timeout_s"))
      .def("stats", [](const LiveSandbox& self) { return restore_dict(self.stats()); })
      .def("working_set", [](const LiveSandbox& self) { return packed(self.working_set()); })
      .def_prop_ro("placed_pages", &LiveSandbox::placed_pages)
      .def("touched", [](const LiveSandbox& self) { return packed(self.touched()); })
      .def(
          "reclaim",
          [](LiveSandbox& self, uint64_t pages_min, uint64_t pages_max, const CancelFlag* cancel) {
            const ReclaimOptions options{pages_min, pages_max,
                                         cancel != nullptr ? &cancel->abandoned : nullptr};
            ReclaimResult result;
            {
              const nb::gil_scoped_release release;
              result = self.reclaim(options);
            }
            return std::pair(reclaim_dict(result), result.notes);
          },
          nb::arg("pages_min") = 1, nb::arg("pages_max") = 0, nb::arg("cancel").none() = nb::none())
      .def_prop_ro("reclaimable_pages", &LiveSandbox::reclaimable_pages)
      .def("reclaimed", [](const LiveSandbox& self) { return packed(self.reclaimed()); })
      .def("detach", &LiveSandbox::detach, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace

void register_live(nb::module_& m) {
  m.def("probe_live", [] {
    std::map<std::string, std::string> missing;
    {
      nb::gil_scoped_release release;
      for (auto& [what, how] : probe_live()) missing[what] = how;
    }
    nb::dict out;
    for (const auto& [what, how] : missing) out[what.c_str()] = how;
    return out;
  });
  m.def("frozen_cgroup", &frozen_cgroup_of, nb::arg("pid"), nb::call_guard<nb::gil_scoped_release>());
  m.def("missing_seccomp_right", [] {
    const MissingRight missing = missing_seccomp_right();
    return std::pair(missing.what, missing.how);
  });
  register_sandbox(m);
  nb::class_<FaultServer>(m, "FaultServer")
      .def(nb::init<size_t>(), nb::arg("threads") = 2)
      .def_prop_ro("event_fd", &FaultServer::event_fd)
      .def("take_events", &FaultServer::take_events)
      .def("release_gone", &FaultServer::release_gone, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "evict",
          [](FaultServer& self, std::shared_ptr<MemoryImage> image, std::shared_ptr<SandboxFile> file,
             std::shared_ptr<BaseSet> bases, bool hold_frozen, const CancelFlag* cancel,
             const nb::bytes& working_set, const nb::bytes& tick_set, uint32_t touches_per_s_max) {
            const EvictOptions options{hold_frozen,
                                       {unpack_working_set(as_bytes(working_set)), touches_per_s_max},
                                       unpack_working_set(as_bytes(tick_set)),
                                       cancel != nullptr ? &cancel->abandoned : nullptr};
            nb::gil_scoped_release release;
            return self.evict(*image, std::move(file), std::move(bases), options,
                              cancel != nullptr ? &cancel->cancelled : nullptr);
          },
          nb::arg("image"), nb::arg("file"), nb::arg("bases"), nb::arg("hold_frozen") = false,
          nb::arg("cancel").none() = nb::none(), nb::arg("working_set") = nb::bytes("", 0),
          nb::arg("tick_set") = nb::bytes("", 0), nb::arg("touches_per_s_max") = 0)
      .def(
          "adopt",
          [](FaultServer& self, std::shared_ptr<SandboxFile> file, std::shared_ptr<BaseSet> bases,
             const nb::bytes& working_set, uint32_t touches_per_s_max) {
            WakeRule wake{unpack_working_set(as_bytes(working_set)), touches_per_s_max};
            nb::gil_scoped_release release;
            return self.adopt(std::move(file), std::move(bases), std::move(wake));
          },
          nb::arg("file"), nb::arg("bases"), nb::arg("working_set") = nb::bytes("", 0),
          nb::arg("touches_per_s_max") = 0)
      .def("stats",
           [](const FaultServer& self) {
             const FaultServerStats s = self.stats();
             nb::dict d;
             d["sandboxes"] = s.sandboxes;
             d["faults"] = s.faults;
             d["events"] = s.events;
             d["restores"] = s.restores;
             d["descriptors"] = s.descriptors;
             return d;
           })
      .def("close", &FaultServer::close, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace medes::bindings
