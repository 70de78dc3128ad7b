// What encoder and decoder know of a base: its bytes (stored pages back to back; a window may cross
// from one stored page into the next stored page, never past the end) and its own address ranges,
// which the predictor needs. Views do not own memory.
#pragma once

#include <cstdint>
#include <span>

#include "common/bytes.h"
#include "image/image.h"

namespace medes {

struct BaseView {
  uint64_t base_id = 0;
  Bytes bytes;  // page_count * 4096; for a remote base a reservation whose needed extents are filled in first
  AddressSpace space;
};

// A byte range of a base that must be present before a page is encoded or decoded.
struct Extent {
  uint32_t base_slot = 0;  // index into the image's list of bases
  uint32_t length = 0;     // bytes
  uint64_t offset = 0;     // bytes into BaseView::bytes, multiple of 16
};

}  // namespace medes
