#include "bindings/bindings.h"
#include "common/error.h"
#include "registry/fingerprint_index.h"

namespace medes::bindings {
namespace {

// bytes objects are 8-byte aligned in CPython, which spans of u64 rely on; a length that is no multiple is
// refused.
std::span<const uint64_t> as_words(const nb::bytes& b) {
  if (b.size() % sizeof(uint64_t) != 0 || reinterpret_cast<uintptr_t>(b.c_str()) % alignof(uint64_t) != 0) {
    throw Error(Code::invalid_argument, "array is not made of 8-byte words");
  }
  return {reinterpret_cast<const uint64_t*>(b.c_str()), b.size() / sizeof(uint64_t)};
}

std::span<const uint8_t> as_u8(const nb::bytes& b) {
  return {reinterpret_cast<const uint8_t*>(b.c_str()), b.size()};
}

nb::tuple remaining(const Locations& locations, const nb::bytes& hashes, uint32_t samples_min) {
  const auto in = as_words(hashes);
  const size_t k = locations.samples_per_page();
  std::vector<uint64_t> pages, out;
  {
    nb::gil_scoped_release release;
    pages = locations.open_pages(in, samples_min);
    for (uint64_t page : pages) {
      const auto own = in.subspan(page * k, k);
      out.insert(out.end(), own.begin(), own.end());
    }
  }
  return nb::make_tuple(to_bytes(std::as_bytes(std::span(pages))), to_bytes(std::as_bytes(std::span(out))));
}

}  // namespace

void register_registry(nb::module_& m) {
  nb::class_<Locations>(m, "Locations")
      .def_static(
          "empty", [](uint64_t pages, uint32_t k) { return Locations(pages, k); }, nb::arg("page_count"),
          nb::arg("samples_per_page"))
      .def_prop_ro("page_count", &Locations::page_count)
      .def_prop_ro("samples_per_page", &Locations::samples_per_page)
      .def(
          "merge",
          [](Locations& self, const nb::bytes& packed, const std::vector<uint64_t>& ids,
             const nb::bytes& pages) {
            const auto words = as_words(packed), rows = as_words(pages);
            nb::gil_scoped_release release;
            self.merge(words, ids, rows);
          },
          nb::arg("packed"), nb::arg("base_ids"), nb::arg("pages"))
      .def("pack",
           [](const Locations& self) {
             return std::pair(to_bytes(std::as_bytes(self.packed())), self.base_ids());
           })
      .def("remaining", &remaining, nb::arg("hashes"), nb::arg("samples_min") = 2);

  nb::class_<FingerprintIndex>(m, "FingerprintIndex")
      .def(nb::init<>())
      .def(
          "insert",
          [](FingerprintIndex& self, uint64_t base_id, const nb::bytes& hashes, const nb::bytes& positions,
             uint32_t k) {
            const auto words = as_words(hashes);
            const auto at = as_u8(positions);
            nb::gil_scoped_release release;
            self.insert(base_id, words, at, k);
          },
          nb::arg("base_id"), nb::arg("hashes"), nb::arg("positions"), nb::arg("samples_per_page"))
      .def("retire", &FingerprintIndex::retire, nb::arg("base_id"), nb::call_guard<nb::gil_scoped_release>())
      .def(
          "lookup",
          [](const FingerprintIndex& self, const nb::bytes& hashes, uint32_t k) {
            const auto words = as_words(hashes);
            nb::gil_scoped_release release;
            return self.lookup(words, k);
          },
          nb::arg("hashes"), nb::arg("samples_per_page"))
      .def("base_ids", &FingerprintIndex::base_ids)
      .def("stats", [](const FingerprintIndex& self) {
        const IndexStats s = self.stats();
        nb::dict d;
        d["bases"] = s.bases;
        d["base_pages"] = s.base_pages;
        d["hashes"] = s.hashes;
        d["bytes"] = s.bytes;
        return d;
      });
}

}  // namespace medes::bindings
