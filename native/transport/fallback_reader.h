// Decorator: one transport first; a read that failed there for want of a connection is tried once more over a
// new one, if that comes soon, and then over the second reader (TCP). Reads of a base that the first does not
// know (RDMA has no key for it) go the second way too: TCP knows for sure whether the base exists. Every such
// read is counted.
#pragma once

#include <memory>

#include "transport/page_reader.h"

namespace medes {

std::shared_ptr<PageReader> make_fallback_reader(std::shared_ptr<PageReader> first,
                                                 std::shared_ptr<PageReader> second);

}  // namespace medes
