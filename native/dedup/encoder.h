// Encodes an image against base windows: per page the smallest of zero / identical / patch / compressed /
// raw, patches packed in groups. Each group is decoded and compared with the image as soon as it is encoded,
// and the finished blob consists of those groups' bytes, before it is handed out.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "codec/base_view.h"
#include "codec/encoded_image.h"
#include "codec/simd.h"
#include "codec/window_plan.h"
#include "common/wiped.h"
#include "image/image.h"

namespace medes {

class BaseSet;
class Reuse;

struct CancelFlag {
  std::atomic<bool> cancelled{false};
  // Of an eviction: to end at once and leave everything as a killed agent would, for the next one.
  std::atomic<bool> abandoned{false};
};
// Throws cancelled.
void check_cancelled(const CancelFlag* cancel);

struct EncodeOptions {
  size_t group_pages = 16;      // 1 … kMaxGroupPages pages are packed together
  bool compress_groups = true;  // false: patches are stored as they are (any page reads alone, larger)
  SimdLevel simd = best_simd();
  const CancelFlag* cancel = nullptr;
  const StoreKey* key = nullptr;  // pages carry tags made with it; without one, checksums
  const Reuse* reuse = nullptr;   // of this image; the plan must come from plan_with_reuse()
  // Pages that a restore will want first, in any order. Where few of a group are among them their patches are
  // stored loose, so that they cost no unpacking of the others'.
  std::vector<uint64_t> wanted_first;
  // Called before windows of pages first … first + count - 1 are looked at, from any thread; may block and
  // throw.
  std::function<void(uint64_t first, uint64_t count)> before_pages;
};

// The blob and its view.
struct EncodedBlob {
  WipedBytes bytes;
  EncodedImage image;
};

// Fetches what the plan's windows need of remote bases and encodes on the shared pool.
// Bases of the plan that are not in `bases` are not used. Blocks. Throws cancelled, invalid_argument, the
// code of a failed fetch, or internal when a page does not come back equal (nothing may then be evicted).
std::shared_ptr<const EncodedBlob> encode_image(const MemoryImage& image, const WindowPlan& plan,
                                                BaseSet& bases, const EncodeOptions& options);

// The same on views alone, in the plan's slot order; an empty view means that the base is not there.
WipedBytes encode_blob(const MemoryImage& image, const WindowPlan& plan, std::span<const BaseView> views,
                       const EncodeOptions& options);

// Decodes every page and compares it with the image. Throws corrupt naming the first page that differs.
void verify_image(const EncodedImage& encoded, const MemoryImage& image, std::span<const BaseView> views,
                  const CancelFlag* cancel = nullptr);

// Rebuilds every page and checks it against its tag or checksum. Throws what decode() returns, naming a page
// that fails.
void check_image(const EncodedImage& encoded, std::span<const BaseView> views);

}  // namespace medes
