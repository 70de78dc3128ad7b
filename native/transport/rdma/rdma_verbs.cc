#include "transport/rdma/rdma_verbs.h"

#include <dlfcn.h>

#include "common/error.h"

namespace medes {

namespace {

struct Loaded {
  Verbs table{};
  std::string error;
};

template <typename F>
void resolve(void* library, const char* name, F& out, std::string& error) {
  out = reinterpret_cast<F>(dlsym(library, name));
  if (!out && error.empty()) error = std::string("libibverbs lacks ") + name;
}

Loaded load() {
  Loaded loaded;
  void* library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    loaded.error = dlerror();
    return loaded;
  }
  Verbs& v = loaded.table;
  std::string& error = loaded.error;
  resolve(library, "ibv_get_device_list", v.get_device_list, error);
  resolve(library, "ibv_free_device_list", v.free_device_list, error);
  resolve(library, "ibv_get_device_name", v.get_device_name, error);
  resolve(library, "ibv_open_device", v.open_device, error);
  resolve(library, "ibv_close_device", v.close_device, error);
  resolve(library, "ibv_query_device", v.query_device, error);
  resolve(library, "ibv_query_port", v.query_port, error);
  resolve(library, "_ibv_query_gid_ex", v.query_gid_ex, error);
  resolve(library, "ibv_alloc_pd", v.alloc_pd, error);
  resolve(library, "ibv_dealloc_pd", v.dealloc_pd, error);
  resolve(library, "ibv_reg_mr", v.reg_mr, error);
  resolve(library, "ibv_dereg_mr", v.dereg_mr, error);
  resolve(library, "ibv_create_comp_channel", v.create_comp_channel, error);
  resolve(library, "ibv_destroy_comp_channel", v.destroy_comp_channel, error);
  resolve(library, "ibv_create_cq", v.create_cq, error);
  resolve(library, "ibv_destroy_cq", v.destroy_cq, error);
  resolve(library, "ibv_get_cq_event", v.get_cq_event, error);
  resolve(library, "ibv_ack_cq_events", v.ack_cq_events, error);
  resolve(library, "ibv_create_qp", v.create_qp, error);
  resolve(library, "ibv_modify_qp", v.modify_qp, error);
  resolve(library, "ibv_destroy_qp", v.destroy_qp, error);
  return loaded;
}

}  // namespace

const Verbs& verbs() {
  static const Loaded loaded = load();
  if (!loaded.error.empty())
    throw Error(Code::unsupported, loaded.error, "libibverbs",
                "apt-get install libibverbs1 ibverbs-providers");
  return loaded.table;
}

}  // namespace medes
