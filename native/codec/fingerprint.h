// Page fingerprints: the k smallest of the hashes of all 64-byte windows at 16-byte steps of the
// pointer-normalised page (min-hash), each with its position. Definition, exact to the bit (golden vectors in
// tests/golden):
//   1. normalise: an aligned 8-byte word that lies in one of the address ranges becomes (w & 0xfff) | 1 << 62
//   2. block b (16 bytes, words x = 2b, y = 2b+1):  f = (lo(x)+K0)*(hi(x)+K1) + (lo(y)+K2)*(hi(y)+K3),
//      a[b] = lo(f) ^ hi(f), where lo/hi are 32-bit halves, their sums wrap at 32 bits, products and the sum
//      at 64
//   3. window p (blocks p … p+3):  s = a[p] ^ rol(a[p+1],7) ^ rol(a[p+2],15) ^ rol(a[p+3],23), 32 bits
//      order key  = s * K4 as 32 bits, low 8 bits replaced by p
//      windows with s equal to that of the all-zero window are left out
//   4. sample = the k smallest order keys, of keys that differ in the low 8 bits only the first
//   5. the hash of a sample is chunk_hash() (MurmurHash3) of the normalised window
// The cheap order key picks the windows, the strong hash names them: 253 MurmurHash3 runs a page become k.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "codec/simd.h"
#include "common/bytes.h"
#include "common/limits.h"
#include "image/image.h"

namespace medes {

struct Fingerprints {
  uint64_t page_count = 0;
  uint32_t samples_per_page = 0;   // k
  std::vector<uint64_t> hashes;    // page_count * k, 0 = no sample; samples stand in order-key order
  std::vector<uint8_t> positions;  // page_count * k, units of 16 bytes
};

// Makes fingerprints of pages, any number at a time; const calls are safe from any thread.
class Fingerprinter {
 public:
  // Throws invalid_argument for k outside 1 … kMaxSamples or too many ranges, unsupported for a level that
  // this CPU does not run.
  Fingerprinter(const AddressSpace& space, uint32_t samples_per_page, SimdLevel level = best_simd());
  ~Fingerprinter();
  // Room for `pages` fingerprints, all without samples.
  Fingerprints make(uint64_t pages) const;
  // Of `count` pages back to back, put at `first` of `out`, which make() made.
  void add(const std::byte* pages, uint64_t first, uint64_t count, Fingerprints& out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Fingerprints of pages back to back, on the shared pool. Throws as Fingerprinter, and invalid_argument for a
// length that is no multiple of the page.
Fingerprints fingerprint_pages(Bytes pages, const AddressSpace& space, uint32_t samples_per_page,
                               SimdLevel level = best_simd());
Fingerprints fingerprint_image(const MemoryImage& image, uint32_t samples_per_page,
                               SimdLevel level = best_simd());

// The ranges in which a word counts as a pointer. For value-only memory with no ranges of its own: the upper
// canonical half short of its last 16 MiB (kernel), and where Linux puts PIE programs, libraries and stacks.
std::vector<AddressRange> pointer_ranges(const AddressSpace& space);

}  // namespace medes
