// The first pass of a dedup op over an image: every page is read once, and while it is in a core's cache goes
// through all that can be told of it before base pages are chosen.
#pragma once

#include <memory>

#include "codec/fingerprint.h"
#include "dedup/encoder.h"
#include "dedup/reuse.h"
#include "image/image.h"
#include "registry/fingerprint_index.h"

namespace medes {

// An earlier dedup of the same processes.
struct EarlierImage {
  const ImageLayout* layout = nullptr;  // outlives the survey's Reuse
  std::shared_ptr<const EncodedImage> encoded;
};

struct Survey {
  Fingerprints fingerprints;     // of the pages that are not taken over
  Locations locations;           // of these in the index
  std::unique_ptr<Reuse> reuse;  // where there was an earlier image
};

// read → same as before? → fingerprint → look up, in blocks of MemoryImage::kReadPages on all cores: a core
// may read while another looks up, and nobody waits at a stage's end. The image outlives the Reuse. Blocks.
// Throws cancelled, as Fingerprinter, as MemoryImage::read.
Survey survey_image(const MemoryImage& image, uint32_t samples_per_page, const FingerprintIndex& index,
                    const EarlierImage& earlier = {}, const CancelFlag* cancel = nullptr,
                    SimdLevel level = best_simd());

}  // namespace medes
