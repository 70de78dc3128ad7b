// One register_<area> per area, each in bind_<area>.cc. Long calls release the GIL.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "codec/base_view.h"
#include "codec/encoded_image.h"
#include "common/bytes.h"

namespace nb = nanobind;

namespace medes {
class BaseSet;
}

namespace medes::bindings {

void register_common(nb::module_& m);
void register_memory(nb::module_& m);
void register_fingerprint(nb::module_& m);
void register_dedup(nb::module_& m);
void register_store(nb::module_& m);
void register_transport(nb::module_& m);
void register_rdma(nb::module_& m);
void register_live(nb::module_& m);
void register_registry(nb::module_& m);

// pages_KIND each, patch_bytes, table_bytes, windows.
nb::dict stats_dict(const EncodedStats& stats);

// Makes the extents of pages [first, first + count) present; views in the image's slot order. Blocks.
std::vector<BaseView> fetch_bases(const EncodedImage& image, uint64_t first, uint64_t count, BaseSet& bases);

inline Bytes as_bytes(const nb::bytes& b) {
  return {reinterpret_cast<const std::byte*>(b.c_str()), b.size()};
}
inline nb::bytes to_bytes(Bytes b) { return nb::bytes(reinterpret_cast<const char*>(b.data()), b.size()); }

}  // namespace medes::bindings
