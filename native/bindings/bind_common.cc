#include "bindings/bindings.h"
#include "common/checksum.h"
#include "common/error.h"
#include "common/limits.h"
#include "common/rights.h"

namespace medes::bindings {

void register_common(nb::module_& m) {
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const Error& e) {
      // medes.errors.from_code makes the catalogue's exception, so that Python sees one family of errors.
      nb::object make = nb::module_::import_("medes.errors").attr("from_code");
      nb::object exc = make(code_name(e.code), e.what(), e.object, e.hint);
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exc.ptr())), exc.ptr());
    }
  });
  m.attr("PAGE_BYTES") = kPageBytes;
  m.attr("MAX_SAMPLES") = kMaxSamples;
  m.attr("DEFAULT_SAMPLES") = kDefaultSamples;
  m.attr("MAX_LOCATIONS") = kMaxLocations;
  m.def("checksum64", [](const nb::bytes& b) { return checksum64(as_bytes(b)); }, nb::arg("data"));
  m.def("keep_only", [](const std::vector<int>& kept) { keep_only(kept); }, nb::arg("capabilities"));
  m.def("error_passes", [](const std::string& code) {
    for (uint16_t i = 0; i <= static_cast<uint16_t>(Code::internal); ++i)
      if (code == code_name(static_cast<Code>(i))) return passes(static_cast<Code>(i));
    return false;
  });
  m.def("error_codes", [] {
    std::vector<std::string> names;
    for (int c = 0; c <= static_cast<int>(Code::internal); ++c)
      names.emplace_back(code_name(static_cast<Code>(c)));
    return names;
  });
}

}  // namespace medes::bindings
