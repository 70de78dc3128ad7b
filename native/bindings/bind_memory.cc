#include <algorithm>

#include <nanobind/stl/map.h>
#include <nanobind/stl/tuple.h>

#include "bindings/bindings.h"
#include "common/error.h"
#include "image/image.h"
#include "procfs/capture.h"
#include "procfs/memory_room.h"
#include "procfs/proc.h"

namespace medes::bindings {
namespace {

nb::bytes image_pages(const MemoryImage& image, uint64_t first, uint64_t count) {
  if (first > image.page_count() || count > image.page_count() - first)
    throw Error(Code::invalid_argument, "pages out of range", "image");
  std::vector<std::byte> out(count * kPageBytes);
  const std::byte* const bytes = image.read(first, count, out.data());
  return to_bytes({bytes, out.size()});
}

void register_image(nb::module_& m) {
  nb::class_<MemoryImage>(m, "MemoryImage")
      .def_static(
          "from_buffer",
          [](const nb::bytes& data, uint64_t address, bool value_only) {
            AddressSpace space;
            space.value_only = value_only;
            if (!value_only && data.size() != 0)
              space.ranges.push_back(
                  {address, address + (data.size() + kPageBytes - 1) / kPageBytes * kPageBytes});
            return MemoryImage::from_buffer(as_bytes(data), address, std::move(space));
          },
          nb::arg("data"), nb::arg("address") = 0, nb::arg("value_only") = true)
      .def_prop_ro("page_count", &MemoryImage::page_count)
      .def_prop_ro("pids",
                   [](const MemoryImage& image) {
                     std::vector<pid_t> pids;
                     for (const auto& p : image.layout().processes) pids.push_back(p.pid);
                     return pids;
                   })
      .def_prop_ro("ranges",
                   [](const MemoryImage& image) {
                     std::vector<std::pair<uint64_t, uint64_t>> ranges;
                     for (const auto& r : image.layout().space.ranges) ranges.emplace_back(r.begin, r.end);
                     return ranges;
                   })
      .def_prop_ro("value_only", [](const MemoryImage& image) { return image.layout().space.value_only; })
      .def(
          "page", [](const MemoryImage& image, uint64_t index) { return image_pages(image, index, 1); },
          nb::arg("index"))
      .def("pages", &image_pages, nb::arg("first"), nb::arg("count"))
      .def_prop_ro("fork_shared",
                   [](const MemoryImage& image) {
                     const auto& s = image.fork_shared();
                     return std::map<std::string, uint64_t>{
                         {"outside", s.outside}, {"kept", s.kept}, {"copied", s.copied}};
                   })
      .def("layout_bytes", [](const MemoryImage& image) {
        const auto bytes = image.layout().serialise();
        return to_bytes(bytes);
      });
  m.def(
      "attach",
      [](const std::vector<pid_t>& pids, std::optional<uint32_t> fork_sharers_max) {
        return attach(pids, fork_sharers_max);
      },
      nb::arg("pids"), nb::arg("fork_sharers_max") = nb::none(), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "capture", [](const std::vector<pid_t>& pids) { return capture(pids); }, nb::arg("pids"),
      nb::call_guard<nb::gil_scoped_release>());
}

void register_processes(nb::module_& m) {
  m.def(
      "process_tree", [](const std::vector<pid_t>& roots) { return process_tree(roots); }, nb::arg("roots"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("living_processes", [] {
    std::vector<std::tuple<pid_t, pid_t, pid_t, uint64_t>> out;
    const nb::gil_scoped_release released;
    for (const auto& [pid, stat] : living_processes())
      out.emplace_back(pid, stat.parent, stat.session, stat.start_time_ticks);
    return out;
  });
  m.def(
      "memory_room",
      [](pid_t pid, const std::string& cgroup_root, const std::string& proc) {
        return MemoryRoom(pid, cgroup_root, proc).bytes();
      },
      nb::arg("pid"), nb::arg("cgroup_root") = "/sys/fs/cgroup", nb::arg("proc") = "/proc",
      nb::call_guard<nb::gil_scoped_release>());
  m.def("cgroup_pids", &cgroup_pids, nb::arg("path"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "private_bytes", [](const std::vector<pid_t>& pids) { return private_bytes(pids); }, nb::arg("pids"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("process_start_time", &process_start_time, nb::arg("pid"));
  m.def("living_start_time", &living_start_time, nb::arg("pid"));
  m.def("is_alive", &is_alive, nb::arg("pid"));
}

}  // namespace

void register_memory(nb::module_& m) {
  register_image(m);
  register_processes(m);
}

}  // namespace medes::bindings
