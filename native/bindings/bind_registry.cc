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

nb::bytes remaining(const Locations& locations, const nb::bytes& hashes, uint32_t samples_min) {
  const auto in = as_words(hashes);
  const uint32_t k = locations.samples_per_page();
  if (in.size() != locations.page_count() * k)
    throw Error(Code::invalid_argument, "hashes are of another image");
  std::vector<uint64_t> out(in.begin(), in.end());
  for (uint64_t page = 0; page < locations.page_count(); ++page) {
    if (locations.located(page) >= samples_min)
      std::fill_n(out.begin() + static_cast<ptrdiff_t>(page * k), k, 0);
  }
  return to_bytes(std::as_bytes(std::span(out)));
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
             uint64_t first_page) {
            const auto words = as_words(packed);
            nb::gil_scoped_release release;
            self.merge(words, ids, first_page);
          },
          nb::arg("packed"), nb::arg("base_ids"), nb::arg("first_page") = 0)
      .def("pack",
           [](const Locations& self) {
             return std::pair(to_bytes(std::as_bytes(self.packed())), self.base_ids());
           })
      .def("unmatched_pages", &Locations::unmatched_pages, nb::arg("samples_min") = 2)
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
