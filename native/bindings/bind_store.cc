#include <unistd.h>

#include <cerrno>

#include "bases/base_set.h"
#include "bindings/bindings.h"
#include "codec/fingerprint.h"
#include "common/error.h"
#include "common/wiped.h"
#include "dedup/encoder.h"
#include "store/sandbox_file.h"
#include "store/seal.h"
#include "store/slab.h"

namespace medes::bindings {

namespace {

std::vector<std::pair<uint64_t, uint64_t>> range_pairs(const AddressSpace& space) {
  std::vector<std::pair<uint64_t, uint64_t>> out;
  for (const AddressRange& range : space.ranges) out.emplace_back(range.begin, range.end);
  return out;
}

nb::dict page_state_counts(SandboxFile& file) {
  static constexpr const char* kStates[] = {"resident", "evicting", "evicted", "restored"};
  uint64_t counts[std::size(kStates)] = {};
  for (const auto& state : file.page_states()) {
    const uint8_t value = state.load(std::memory_order_relaxed);
    // An unknown value can only come from damage: it is what nobody may rely on, so it counts as evicting.
    ++counts[value < std::size(kStates) ? value : static_cast<uint8_t>(PageState::evicting)];
  }
  nb::dict out;
  for (size_t i = 0; i < std::size(kStates); ++i) out[kStates[i]] = counts[i];
  return out;
}

// Rebuilds every page from the file and the bases, against the page tags, and against `image` where
// there is one.
void verify_file(const SandboxFile& file, BaseSet& bases, std::shared_ptr<MemoryImage> image) {
  nb::gil_scoped_release release;
  const EncodedImage& encoded = file.encoded();
  if (encoded.keyed() && !store_key_of(file.path()))
    throw Error(Code::permission_denied, "its page tags cannot be checked without the store's key",
                file.path(), "read it beside its store.key, as a user who may read that");
  const std::vector<BaseView> views = fetch_bases(encoded, 0, encoded.page_count(), bases);
  if (image != nullptr) {
    verify_image(encoded, *image, views);
    return;
  }
  const WorkScope scope;
  WipedBytes out(kPageBytes);
  auto scratch = EncodedImage::make_scratch();
  for (uint64_t page = 0; page < encoded.page_count(); ++page) {
    const Code code = encoded.decode(page, views, out.data(), *scratch);
    if (code != Code::ok)
      throw Error(code, "page " + std::to_string(page) + " cannot be rebuilt", file.path());
  }
}

// Rebuilds every page, checks it, and writes it into the descriptor at its address.
void write_pages(const SandboxFile& file, int fd, BaseSet& bases) {
  nb::gil_scoped_release release;
  if (file.layout().processes.size() > 1)
    throw Error(Code::invalid_argument, "its pages are of several address spaces", file.path());
  const EncodedImage& encoded = file.encoded();
  const std::vector<BaseView> views = fetch_bases(encoded, 0, encoded.page_count(), bases);
  const WorkScope scope;
  WipedBytes out(kPageBytes);
  auto scratch = EncodedImage::make_scratch();
  for (const PageRun& run : file.layout().runs) {
    for (uint64_t i = 0; i < run.count; ++i) {
      const uint64_t page = run.first_page + i;
      const Code code = encoded.decode(page, views, out.data(), *scratch);
      if (code != Code::ok)
        throw Error(code, "page " + std::to_string(page) + " cannot be rebuilt", file.path());
      const auto at = static_cast<off_t>(run.address + i * kPageBytes);
      for (size_t done = 0; done < kPageBytes;) {
        const ssize_t n = pwrite(fd, out.data() + done, kPageBytes - done, at + static_cast<off_t>(done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) throw errno_error(errno, "cannot write its pages", file.path());
        done += static_cast<size_t>(n);
      }
    }
  }
}

std::shared_ptr<Slab> create_slab(const std::string& path, uint64_t base_id,
                                  std::shared_ptr<MemoryImage> image,
                                  const std::optional<std::vector<uint64_t>>& pages, const nb::bytes& meta) {
  const Bytes meta_bytes = as_bytes(meta);  // the argument keeps it alive
  nb::gil_scoped_release release;
  if (pages && pages->empty()) throw Error(Code::invalid_argument, "a slab holds at least one page", path);
  return Slab::create(path, base_id, *image, pages ? *pages : std::vector<uint64_t>{}, meta_bytes);
}

void register_slab(nb::module_& m) {
  m.def(
      "set_store_key",
      [](const std::string& folder, const nb::bytes& key) { set_store_key(folder, as_bytes(key)); },
      nb::arg("folder"), nb::arg("key"));
  m.def("seal_existing", &seal_existing, nb::arg("path"), nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Slab>(m, "Slab")
      .def_static("create", &create_slab, nb::arg("path"), nb::arg("base_id"), nb::arg("image"),
                  nb::arg("pages") = nb::none(), nb::arg("meta") = nb::bytes("", 0))
      .def_static(
          "open",
          [](const std::string& path, bool ours) {
            return Slab::open(path, ours ? Owners::us : Owners::anyone);
          },
          nb::arg("path"), nb::arg("ours") = true, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("base_id", &Slab::base_id)
      .def_prop_ro("page_count", &Slab::page_count)
      .def_prop_ro("ranges", [](const Slab& s) { return range_pairs(s.space()); })
      .def_prop_ro("value_only", [](const Slab& s) { return s.space().value_only; })
      .def_prop_ro("meta", [](const Slab& s) { return to_bytes(s.meta()); })
      .def_prop_ro("path", &Slab::path)
      .def_prop_ro("file_bytes", &Slab::file_bytes)
      .def(
          "fingerprint",
          [](const Slab& s, uint32_t samples_per_page) {
            return fingerprint_pages(s.bytes(), s.space(), samples_per_page);
          },
          nb::arg("samples_per_page") = kDefaultSamples, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "verify", [](const Slab& s) { return s.verify(0, s.page_count()); },
          nb::call_guard<nb::gil_scoped_release>())
      .def("unlink", &Slab::unlink);
}

}  // namespace

void register_store(nb::module_& m) {
  register_slab(m);
  nb::class_<SandboxFile>(m, "SandboxFile")
      .def_static(
          "create",
          [](const std::string& path, const nb::bytes& meta, std::shared_ptr<MemoryImage> image,
             std::shared_ptr<EncodedBlob> encoded) {
            const Bytes meta_bytes = as_bytes(meta);  // the argument keeps it alive
            nb::gil_scoped_release release;
            return SandboxFile::create(path, meta_bytes, image->layout(), encoded->bytes);
          },
          nb::arg("path"), nb::arg("meta"), nb::arg("image"), nb::arg("encoded"))
      .def_static(
          "open",
          [](const std::string& path, bool ours) {
            return SandboxFile::open(path, ours ? Owners::us : Owners::anyone);
          },
          nb::arg("path"), nb::arg("ours") = true, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("meta", [](const SandboxFile& f) { return to_bytes(f.meta()); })
      .def_prop_ro("base_ids",
                   [](const SandboxFile& f) {
                     const auto ids = f.encoded().base_ids();
                     return std::vector<uint64_t>(ids.begin(), ids.end());
                   })
      .def_prop_ro("page_count", [](const SandboxFile& f) { return f.layout().page_count; })
      .def_prop_ro("pids",
                   [](const SandboxFile& f) {
                     std::vector<pid_t> pids;
                     for (const auto& process : f.layout().processes) pids.push_back(process.pid);
                     return pids;
                   })
      .def_prop_ro("start_times",
                   [](const SandboxFile& f) {
                     std::vector<uint64_t> ticks;
                     for (const auto& process : f.layout().processes)
                       ticks.push_back(process.start_time_ticks);
                     return ticks;
                   })
      .def_prop_ro("stats", [](const SandboxFile& f) { return stats_dict(f.encoded().stats()); })
      .def_prop_ro("page_state_counts", &page_state_counts)
      .def_prop_ro("may_be_stopped", &SandboxFile::may_be_stopped)
      .def("continue_stopped", &SandboxFile::continue_stopped)
      .def_prop_ro("child_paths", &SandboxFile::child_paths)
      .def_prop_ro("path", &SandboxFile::path)
      .def_prop_ro("file_bytes", &SandboxFile::file_bytes)
      .def("verify", &verify_file, nb::arg("bases"), nb::arg("image").none() = nb::none())
      .def("write_pages", &write_pages, nb::arg("fd"), nb::arg("bases"))
      .def("unlink", &SandboxFile::unlink);
}

}  // namespace medes::bindings
