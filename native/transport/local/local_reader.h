// PageReader over slabs mapped in this process: the reference that other transports are compared with. A
// BaseSet does not need it for local slabs, which it uses in place.
#pragma once

#include <memory>
#include <span>

#include "store/slab.h"
#include "transport/page_reader.h"

namespace medes {

std::shared_ptr<PageReader> make_local_reader(std::span<const std::shared_ptr<Slab>> slabs);

}  // namespace medes
