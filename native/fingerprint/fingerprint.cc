#include "fingerprint/fingerprint.h"

#include <algorithm>

#include "common/error.h"
#include "common/thread_pool.h"
#include "fingerprint/kernel.h"
#include "fingerprint/murmur3.h"

namespace medes {
namespace {

constexpr size_t kPagesPerTask = 256;  // 1 MiB of pages: about 0.2 ms of work

fp::KeysFn kernel_for(SimdLevel level) {
  if (level > best_simd()) {
    throw Error(Code::unsupported, "this CPU does not run the asked-for SIMD level", simd_name(level));
  }
#if defined(__x86_64__)
  if (level == SimdLevel::avx512) return fp::keys_avx512;
  if (level == SimdLevel::avx2) return fp::keys_avx2;
#endif
  return fp::keys_scalar;
}

fp::Ranges prepare(const AddressSpace& space) {
  fp::Ranges out;
  for (const AddressRange& r : pointer_ranges(space)) {
    if (r.end <= r.begin) continue;
    if (out.count == fp::kRangesMax) throw Error(Code::invalid_argument, "too many address ranges");
    out.begin[out.count] = r.begin;
    out.length[out.count] = r.end - r.begin;
    if (out.count == 0) out.all_begin = r.begin;
    out.all_begin = std::min(out.all_begin, r.begin);
    ++out.count;
  }
  for (uint32_t i = 0; i < out.count; ++i) {
    out.all_length = std::max(out.all_length, out.begin[i] + out.length[i] - out.all_begin);
  }
  return out;
}

// Inserts the order keys into the sorted list of the k smallest with distinct upper 24 bits; returns its
// length.
size_t select(const uint32_t* keys, size_t count, size_t k, uint32_t* best) {
  size_t size = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t key = keys[i];
    if (size == k && key >= best[size - 1]) continue;
    size_t at = size;
    while (at > 0 && best[at - 1] > key) --at;
    // Keys come in ascending position, so an equal window already in the list lies before `at`.
    if (at > 0 && (best[at - 1] >> 8) == (key >> 8)) continue;
    const size_t end = std::min(size, k - 1);
    for (size_t j = end; j > at; --j) best[j] = best[j - 1];
    best[at] = key;
    size = end + 1;
  }
  return size;
}

// One page: most pages have their k smallest keys below a limit that lets about 3 k of 253 pass; pages of
// few distinct windows need a second run without a limit.
void fingerprint_page(fp::KeysFn order_keys, const uint64_t* page, const fp::Ranges& ranges, uint32_t k,
                      uint64_t* hashes, uint8_t* positions) {
  alignas(64) uint64_t normalised[fp::kWordsPerPage];
  uint32_t keys[fp::kWindowsPerPage + 16];
  uint32_t best[kMaxSamples];
  const auto limit = static_cast<uint32_t>((uint64_t{3 * k} << 32) / fp::kWindowsPerPage);
  size_t size = select(keys, order_keys(page, ranges, limit, normalised, keys), k, best);
  if (size < k) size = select(keys, order_keys(page, ranges, ~0u, normalised, keys), k, best);
  for (size_t i = 0; i < k; ++i) positions[i] = i < size ? static_cast<uint8_t>(best[i]) : 0;
  std::fill(hashes + size, hashes + k, 0);
  for (size_t i = 0; i < size; ++i) {
    hashes[i] = chunk_hash(reinterpret_cast<const std::byte*>(normalised + size_t{positions[i]} * 2));
  }
}

}  // namespace

std::vector<AddressRange> pointer_ranges(const AddressSpace& space) {
  if (!space.value_only || !space.ranges.empty()) return space.ranges;
  return {{0x5500'0000'0000, 0x5700'0000'0000},
          {0x7e00'0000'0000, 0x8000'0000'0000},
          {0xffff'8000'0000'0000, 0xffff'ffff'ff00'0000}};
}

Fingerprints fingerprint_pages(Bytes pages, const AddressSpace& space, uint32_t samples_per_page,
                               SimdLevel level) {
  if (samples_per_page < 1 || samples_per_page > kMaxSamples) {
    throw Error(Code::invalid_argument, "samples per page must be 1 to 16", std::to_string(samples_per_page));
  }
  if (pages.size() % kPageBytes != 0)
    throw Error(Code::invalid_argument, "length is no multiple of the page size");
  const fp::KeysFn order_keys = kernel_for(level);
  const fp::Ranges ranges = prepare(space);
  Fingerprints out;
  out.page_count = pages.size() / kPageBytes;
  out.samples_per_page = samples_per_page;
  out.hashes.resize(out.page_count * samples_per_page);
  out.positions.resize(out.page_count * samples_per_page);
  ThreadPool::shared().parallel_for(out.page_count, kPagesPerTask, [&](size_t begin, size_t end) {
    for (size_t page = begin; page < end; ++page) {
      const size_t at = page * samples_per_page;
      const auto* words = reinterpret_cast<const uint64_t*>(pages.data() + page * kPageBytes);
      fingerprint_page(order_keys, words, ranges, samples_per_page, out.hashes.data() + at,
                       out.positions.data() + at);
    }
  });
  return out;
}

Fingerprints fingerprint_image(const MemoryImage& image, uint32_t samples_per_page, SimdLevel level) {
  return fingerprint_pages(image.bytes(), image.layout().space, samples_per_page, level);
}

}  // namespace medes
