// The extension module: each area registers itself, nothing else happens here.
#include "bindings/bindings.h"

NB_MODULE(_core, m) {
  m.doc() = "Medes native core; use medes.native, which documents and types it";
  medes::bindings::register_common(m);
  medes::bindings::register_memory(m);
  medes::bindings::register_fingerprint(m);
  medes::bindings::register_dedup(m);
  medes::bindings::register_store(m);
  medes::bindings::register_transport(m);
  medes::bindings::register_rdma(m);
  medes::bindings::register_live(m);
  medes::bindings::register_registry(m);
}
