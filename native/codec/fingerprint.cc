#include "codec/fingerprint.h"

#include <algorithm>

#include "codec/kernel.h"
#include "codec/murmur3.h"
#include "common/error.h"
#include "common/thread_pool.h"
#include "common/wiped.h"

namespace medes {
namespace {

constexpr size_t kPagesPerTask = 256;  // 1 MiB of pages: about 0.2 ms of work

fp::SampleFn kernel_for(SimdLevel level) {
  if (level > best_simd()) {
    throw Error(Code::unsupported, "this CPU does not run the asked-for SIMD level", simd_name(level));
  }
#if defined(__x86_64__)
  if (level == SimdLevel::avx512) return fp::sample_avx512;
  if (level == SimdLevel::avx2) return fp::sample_avx2;
#endif
  return fp::sample_scalar;
}

fp::Ranges prepare(const AddressSpace& space) {
  fp::Ranges out;
  for (const AddressRange& r : pointer_ranges(space)) {
    if (r.end <= r.begin) continue;
    if (out.count == fp::kRangesMax) throw Error(Code::invalid_argument, "too many address ranges");
    out.begin[out.count] = r.begin;
    out.length[out.count] = r.end - r.begin;
    ++out.count;
  }
  return out;
}

void fingerprint_page(fp::SampleFn sample, const uint64_t* page, const fp::Ranges& ranges, uint32_t k,
                      uint64_t* hashes, uint8_t* positions) {
  fp::Samples samples;
  const size_t size = sample(page, ranges, k, samples);
  for (size_t i = 0; i < k; ++i) {
    positions[i] = i < size ? static_cast<uint8_t>(samples.best[i]) : 0;
    hashes[i] = i < size ? chunk_hash(reinterpret_cast<const std::byte*>(samples.windows[i])) : 0;
  }
}

}  // namespace

std::vector<AddressRange> pointer_ranges(const AddressSpace& space) {
  if (!space.value_only || !space.ranges.empty()) return space.ranges;
  return {{0x5500'0000'0000, 0x5700'0000'0000},
          {0x7e00'0000'0000, 0x8000'0000'0000},
          {0xffff'8000'0000'0000, 0xffff'ffff'ff00'0000}};
}

struct Fingerprinter::Impl {
  fp::SampleFn sample;
  fp::Ranges ranges;
  uint32_t k;
};

Fingerprinter::Fingerprinter(const AddressSpace& space, uint32_t samples_per_page, SimdLevel level) {
  if (samples_per_page < 1 || samples_per_page > kMaxSamples) {
    throw Error(Code::invalid_argument, "samples per page must be 1 to 16", std::to_string(samples_per_page));
  }
  impl_ = std::make_unique<Impl>(Impl{kernel_for(level), prepare(space), samples_per_page});
}

Fingerprinter::~Fingerprinter() = default;

Fingerprints Fingerprinter::make(uint64_t pages) const {
  Fingerprints out;
  out.page_count = pages;
  out.samples_per_page = impl_->k;
  out.hashes.resize(pages * impl_->k);
  out.positions.resize(pages * impl_->k);
  return out;
}

void Fingerprinter::add(const std::byte* pages, uint64_t first, uint64_t count, Fingerprints& out) const {
  const uint32_t k = impl_->k;
  for (uint64_t i = 0; i < count; ++i) {
    const auto* words = reinterpret_cast<const uint64_t*>(pages + i * kPageBytes);
    const size_t at = (first + i) * k;
    fingerprint_page(impl_->sample, words, impl_->ranges, k, out.hashes.data() + at,
                     out.positions.data() + at);
  }
}

Fingerprints fingerprint_pages(Bytes pages, const AddressSpace& space, uint32_t samples_per_page,
                               SimdLevel level) {
  if (pages.size() % kPageBytes != 0)
    throw Error(Code::invalid_argument, "length is no multiple of the page size");
  const Fingerprinter fingerprinter(space, samples_per_page, level);
  Fingerprints out = fingerprinter.make(pages.size() / kPageBytes);
  ThreadPool::shared().parallel_for(out.page_count, kPagesPerTask, [&](size_t begin, size_t end) {
    fingerprinter.add(pages.data() + begin * kPageBytes, begin, end - begin, out);
  });
  return out;
}

Fingerprints fingerprint_image(const MemoryImage& image, uint32_t samples_per_page, SimdLevel level) {
  const Fingerprinter fingerprinter(image.layout().space, samples_per_page, level);
  Fingerprints out = fingerprinter.make(image.page_count());
  ThreadPool::shared().parallel_for(out.page_count, MemoryImage::kReadPages, [&](size_t begin, size_t end) {
    static thread_local ThreadScratch<PageBuffer> thread_buffer(MemoryImage::kReadPages);
    const PageBuffer& buffer = thread_buffer.use();
    fingerprinter.add(image.read(begin, end - begin, buffer.data()), begin, end - begin, out);
  });
  return out;
}

}  // namespace medes
