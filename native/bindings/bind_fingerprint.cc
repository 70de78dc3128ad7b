#include "bindings/bindings.h"
#include "codec/fingerprint.h"
#include "codec/murmur3.h"

namespace medes::bindings {

void register_fingerprint(nb::module_& m) {
  nb::class_<Fingerprints>(m, "Fingerprints")
      .def_prop_ro("page_count", [](const Fingerprints& f) { return f.page_count; })
      .def_prop_ro("samples_per_page", [](const Fingerprints& f) { return f.samples_per_page; })
      .def_prop_ro("hashes",
                   [](const Fingerprints& f) { return to_bytes(std::as_bytes(std::span(f.hashes))); })
      .def_prop_ro("positions",
                   [](const Fingerprints& f) { return to_bytes(std::as_bytes(std::span(f.positions))); });

  m.def("simd_levels", [] {
    std::vector<std::string> names;
    for (SimdLevel level : simd_levels()) names.emplace_back(simd_name(level));
    return names;
  });
  m.def(
      "fingerprint",
      [](std::shared_ptr<MemoryImage> image, uint32_t samples_per_page, const std::string& simd) {
        const SimdLevel level = parse_simd(simd);
        nb::gil_scoped_release release;
        return fingerprint_image(*image, samples_per_page, level);
      },
      nb::arg("image"), nb::arg("samples_per_page") = kDefaultSamples, nb::arg("simd") = "best");
  m.def(
      "murmur3_x64_128",
      [](const nb::bytes& data, uint32_t seed) {
        const Hash128 h = murmur3_x64_128(as_bytes(data), seed);
        return std::pair(h.low, h.high);
      },
      nb::arg("data"), nb::arg("seed") = 0);
}

}  // namespace medes::bindings
