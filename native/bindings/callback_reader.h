// PageReader that asks a Python function for every read, under the GIL: slow, and for experiments only. A
// thread that waits for a page then waits for the GIL, whose holder must never wait for a page in turn.
#pragma once

#include <memory>
#include <string>

#include "bindings/bindings.h"
#include "transport/page_reader.h"

namespace medes::bindings {

// `read(base_id, offset, length)` returns exactly `length` bytes, else the read is corrupt. An error of the
// catalogue is the read's status, any other exception internal. The function is let go of by close(). Throws
// limit_exceeded beyond kTransports names.
std::shared_ptr<PageReader> make_callback_reader(const std::string& name, nb::callable read);

}  // namespace medes::bindings
