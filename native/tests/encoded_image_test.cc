// The encoded image end to end: encode, open, decode; damage anywhere gives an error, never wrong bytes.
#include "codec/encoded_image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>

#include "codec/blob_layout.h"
#include "common/checksum.h"
#include "common/error.h"
#include "dedup/encoder.h"
#include "registry/fingerprint_index.h"
#include "tests/engine_test_util.h"

namespace medes {
namespace {

using testing::bytes_of;
using testing::Random;
using testing::Words;

AddressSpace space_of_process() {
  return {{{testing::kHeap - (1 << 20), testing::kHeap + 2 * testing::kRegionBytes},
           {testing::kMapped - (1 << 20), testing::kMapped + 2 * testing::kRegionBytes}},
          false};
}

// A target, two bases and everything between.
struct Scene {
  Words base_a, base_b, target;
  std::shared_ptr<MemoryImage> image;
  std::vector<BaseView> views;
  WindowPlan plan;
  WipedBytes blob;

  explicit Scene(const EncodeOptions& options = {}, uint64_t seed = 1) {
    base_a = testing::heap_like(40, seed);
    base_b = testing::heap_like(20, seed + 1);
    target = testing::moved(base_a, 0x40000, -0x9000, 20, seed + 2);
    const auto page = [this](size_t i) { return target.data() + i * 512; };
    std::fill_n(page(0), 512, 0);
    std::copy_n(base_a.data() + 512, 512, page(1));          // identical
    std::copy_n(base_b.data() + 2 * 512 + 4, 512, page(2));  // shifted, other base
    std::copy_n(base_a.data() + 3 * 512, 256, page(3));      // halves of two bases
    std::copy_n(base_b.data() + 9 * 512 + 128, 256, page(3) + 256);
    Random random(seed + 3);
    auto* const text = reinterpret_cast<uint8_t*>(page(4));  // compressible by itself, no base has it
    for (size_t i = 0; i < kPageBytes; ++i) text[i] = static_cast<uint8_t>('a' + random.below(6));
    for (size_t i = 0; i < 512; ++i) page(5)[i] = random.next();  // nothing helps
    std::copy_n(base_a.data() + 39 * 512, 512, page(6));          // window at the base's very end
    image = MemoryImage::from_buffer(bytes_of(target), 0, space_of_process());
    FingerprintIndex index;
    for (auto [id, words] : {std::pair(100, &base_a), std::pair(200, &base_b)}) {
      const Fingerprints f = fingerprint_pages(bytes_of(*words), space_of_process(), 8);
      index.insert(static_cast<uint64_t>(id), f.hashes, f.positions, 8);
    }
    const Fingerprints f = fingerprint_image(*image, 8);
    plan = plan_windows(image->page_count(), f, index.lookup(f.hashes, 8));
    for (uint64_t id : plan.base_ids()) {
      views.push_back({id, bytes_of(id == 100 ? base_a : base_b), space_of_process()});
    }
    blob = encode_blob(*image, plan, views, options);
  }
};

TEST(EncodedImage, EveryKindAndOptionComesBack) {
  for (size_t group : {1u, 7u, 16u, 64u}) {
    for (bool compress : {false, true}) {
      for (SimdLevel level : simd_levels()) {
        EncodeOptions options;
        options.group_pages = group;
        options.compress_groups = compress;
        options.simd = level;
        options.wanted_first = {2, 3, 6, 20, 39};
        const Scene scene(options);
        const EncodedImage encoded = EncodedImage::open(scene.blob);
        verify_image(encoded, *scene.image, scene.views);
        const EncodedStats s = encoded.stats();
        EXPECT_EQ(std::accumulate(std::begin(s.pages), std::end(s.pages), uint64_t{0}), 40u);
        for (size_t kind = 0; kind < kPageKinds; ++kind)
          EXPECT_GT(s.pages[kind], 0u) << kPageKindNames[kind] << ": a page of it belongs into the scene";
        EXPECT_EQ(encoded.kind(0), PageKind::zero);
        EXPECT_EQ(encoded.kind(1), PageKind::identical);
        EXPECT_EQ(encoded.kind(2), PageKind::identical);
        EXPECT_EQ(encoded.kind(3), PageKind::patch);
        EXPECT_EQ(encoded.kind(4), PageKind::compressed);
        EXPECT_EQ(encoded.kind(5), PageKind::raw);
        EXPECT_EQ(encoded.kind(6), PageKind::identical);
        EXPECT_EQ(s.patch_bytes + s.table_bytes, scene.blob.size());
      }
    }
  }
}

TEST(EncodedImage, LevelsMakeTheSameBlob) {
  std::vector<WipedBytes> blobs;
  for (SimdLevel level : simd_levels()) {
    EncodeOptions options;
    options.simd = level;
    blobs.push_back(Scene(options).blob);
  }
  for (const auto& b : blobs) EXPECT_EQ(b, blobs[0]);
}

TEST(EncodedImage, ExtentsNameAllThatIsRead) {
  const Scene scene;
  const EncodedImage encoded = EncodedImage::open(scene.blob);
  const auto scratch = EncodedImage::make_scratch();
  for (uint64_t page = 0; page < encoded.page_count(); ++page) {
    std::vector<Extent> extents;
    encoded.extents(page, 1, extents);
    // Only the extents are there; everything else is noise.
    std::vector<std::vector<std::byte>> partial;
    std::vector<BaseView> views = scene.views;
    for (BaseView& v : views) {
      partial.emplace_back(v.bytes.size(), std::byte{0xee});
      v.bytes = partial.back();
    }
    for (const Extent& e : extents) {
      std::memcpy(partial[e.base_slot].data() + e.offset, scene.views[e.base_slot].bytes.data() + e.offset,
                  e.length);
    }
    alignas(64) std::byte out[kPageBytes];
    ASSERT_EQ(encoded.decode(page, views, out, *scratch), Code::ok) << page;
    ASSERT_EQ(std::memcmp(out, scene.image->page(page), kPageBytes), 0);
  }
}

TEST(EncodedImage, AnyOrderAndOneScratchForTwoImages) {
  const Scene a({}, 1), b({}, 50);
  const EncodedImage first = EncodedImage::open(a.blob), second = EncodedImage::open(b.blob);
  const auto scratch = EncodedImage::make_scratch();
  Random random(8);
  alignas(64) std::byte out[kPageBytes];
  for (int i = 0; i < 400; ++i) {
    const bool use_first = random.below(2) == 0;
    const Scene& scene = use_first ? a : b;
    const uint64_t page = random.below(40);
    ASSERT_EQ((use_first ? first : second).decode(page, scene.views, out, *scratch), Code::ok);
    ASSERT_EQ(std::memcmp(out, scene.image->page(page), kPageBytes), 0);
  }
  EXPECT_EQ(first.decode(40, a.views, out, *scratch), Code::invalid_argument);
}

TEST(EncodedImage, ThreadsWithTheirOwnScratch) {
  const Scene scene;
  const EncodedImage encoded = EncodedImage::open(scene.blob);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const auto scratch = EncodedImage::make_scratch();
      alignas(64) std::byte out[kPageBytes];
      for (uint64_t i = 0; i < 200; ++i) {
        const uint64_t page = (i * 7 + static_cast<uint64_t>(t)) % 40;
        wrong += encoded.decode(page, scene.views, out, *scratch) != Code::ok ||
                 std::memcmp(out, scene.image->page(page), kPageBytes) != 0;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

// Decodes all pages; true when every page that decodes at all is right.
bool never_wrong(Bytes blob, const Scene& scene, std::span<const BaseView> views, size_t& failures) {
  try {
    const EncodedImage encoded = EncodedImage::open(blob);
    if (encoded.page_count() != scene.image->page_count()) return false;
    const auto scratch = EncodedImage::make_scratch();
    alignas(64) std::byte out[kPageBytes];
    for (uint64_t page = 0; page < encoded.page_count(); ++page) {
      const Code code = encoded.decode(page, views, out, *scratch);
      failures += code != Code::ok;
      if (code == Code::ok && std::memcmp(out, scene.image->page(page), kPageBytes) != 0) return false;
    }
  } catch (const Error& e) {
    ++failures;
    return e.code == Code::corrupt || e.code == Code::unsupported;  // a version that does not exist
  }
  return true;
}

TEST(EncodedImage, OneWrongByteAnywhereIsReported) {
  EncodeOptions options;
  options.group_pages = 4;
  options.wanted_first = {2, 3, 20};
  const Scene scene(options);
  const EncodedImage encoded = EncodedImage::open(scene.blob);
  blob::Header header;
  std::memcpy(&header, scene.blob.data(), sizeof header);
  Random random(5);
  for (size_t at = 0; at < scene.blob.size(); at += at < header.payload.offset ? 1 : 1 + random.below(23)) {
    WipedBytes damaged = scene.blob;
    damaged[at] ^= static_cast<std::byte>(1 + random.below(255));
    size_t failures = 0;
    ASSERT_TRUE(never_wrong(damaged, scene, scene.views, failures)) << at;
    const bool unused = at >= header.payload.offset + header.payload.bytes;  // padding
    const auto in = [at](const blob::Section& s) { return at >= s.offset && at < s.offset + s.bytes; };
    const bool alignment = at >= blob::header_bytes(header) && !in(header.bases) && !in(header.dictionary) &&
                           !in(header.page_checks) && !in(header.entries) && !in(header.groups) &&
                           !in(header.windows) && !in(header.payload);
    if (!unused && !alignment && at < header.payload.offset) EXPECT_GT(failures, 0u) << at;
  }
}

TEST(EncodedImage, WrongBaseBytesAreReported) {
  const Scene scene;
  Random random(6);
  size_t failures = 0;
  for (int round = 0; round < 40; ++round) {
    Words a = scene.base_a;
    for (int i = 0; i < 20; ++i) a[random.below(a.size())] ^= 1ull << random.below(64);
    std::vector<BaseView> views = scene.views;
    for (BaseView& v : views) {
      if (v.base_id == 100) v.bytes = bytes_of(a);
    }
    ASSERT_TRUE(never_wrong(scene.blob, scene, views, failures));
  }
  EXPECT_GT(failures, 0u);
  std::vector<BaseView> short_views = scene.views;  // a base that is shorter than the windows say
  for (BaseView& v : short_views) v.bytes = v.bytes.first(kPageBytes - 16);
  failures = 0;
  EXPECT_TRUE(never_wrong(scene.blob, scene, short_views, failures));
  EXPECT_GT(failures, 0u);
  failures = 0;
  EXPECT_TRUE(never_wrong(scene.blob, scene, {}, failures));
  EXPECT_GT(failures, 0u);
}

// Damage with all checksums made right again: what an attacker who writes the file would do.
TEST(EncodedImage, HostileTablesNeverLeaveTheBuffers) {
  EncodeOptions options;
  options.wanted_first = {2, 3, 20, 38, 39};
  const Scene scene(options);
  blob::Header header;
  std::memcpy(&header, scene.blob.data(), sizeof header);
  Random random(7);
  for (int round = 0; round < 3000; ++round) {
    WipedBytes damaged = scene.blob;
    blob::Header h = header;
    for (uint64_t n = 1 + random.below(3); n > 0; --n) {
      const size_t at = blob::header_bytes(h) + random.below(damaged.size() - blob::header_bytes(h));
      damaged[at] = static_cast<std::byte>(random.below(3) == 0 ? 0xff : random.next());
    }
    if (random.below(4) == 0) {
      auto* bytes = reinterpret_cast<std::byte*>(&h);
      bytes[16 + random.below(offsetof(blob::Header, nonce) - 16)] ^=
          static_cast<std::byte>(1 << random.below(8));
    }
    for (blob::Section* s : {&h.bases, &h.dictionary, &h.page_checks, &h.entries, &h.groups, &h.windows}) {
      if (s->offset <= damaged.size() && s->bytes <= damaged.size() - s->offset) {
        s->checksum = checksum64(Bytes(damaged).subspan(s->offset, s->bytes));
      }
    }
    blob::put_header(h, damaged.data());
    try {
      const EncodedImage encoded = EncodedImage::open(damaged);
      const auto scratch = EncodedImage::make_scratch();
      alignas(64) std::byte out[kPageBytes];
      std::vector<Extent> extents;
      for (uint64_t page = 0; page < std::min<uint64_t>(encoded.page_count(), 64); ++page) {
        encoded.decode(page, scene.views, out, *scratch);
      }
      encoded.extents(0, encoded.page_count(), extents);
    } catch (const Error& e) {
      ASSERT_EQ(e.code, Code::corrupt) << e.what();
    }
  }
}

TEST(EncodedImage, TruncatedAndForeignBlobsAreRefused) {
  const Scene scene;
  for (size_t n = 0; n < scene.blob.size(); n += 1 + n / 50) {
    EXPECT_THROW(EncodedImage::open(Bytes(scene.blob).first(n)), Error) << n;
  }
  EXPECT_THROW(EncodedImage::open(Bytes(scene.blob).subspan(1)), Error);
}

TEST(EncodedImage, EmptyImageAndImageWithoutBases) {
  const auto empty = MemoryImage::from_buffer({}, 0, {});
  const Fingerprints none = fingerprint_image(*empty, 8);
  const WindowPlan no_plan = plan_windows(empty->page_count(), none, Locations(empty->page_count(), 8));
  const auto blob = encode_blob(*empty, no_plan, {}, {});
  EXPECT_EQ(EncodedImage::open(blob).page_count(), empty->page_count());

  const Words words = testing::heap_like(5, 1);
  const auto image = MemoryImage::from_buffer(bytes_of(words), 0, {});
  const WindowPlan plan = plan_windows(5, fingerprint_image(*image, 8), Locations(5, 8));
  const auto alone = encode_blob(*image, plan, {}, {});
  verify_image(EncodedImage::open(alone), *image, {});
}

TEST(Encode, BasesThatAreNotThereAreNotUsed) {
  const Scene scene;
  std::vector<BaseView> views = scene.views;
  views[0].bytes = {};
  const auto blob = encode_blob(*scene.image, scene.plan, views, {});
  verify_image(EncodedImage::open(blob), *scene.image, views);
}

TEST(Encode, CancelledAndBadArguments) {
  const Scene scene;
  CancelFlag flag;
  flag.cancelled = true;
  EncodeOptions options;
  options.cancel = &flag;
  try {
    encode_blob(*scene.image, scene.plan, scene.views, options);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Code::cancelled);
  }
  options.cancel = nullptr;
  options.group_pages = 65;
  EXPECT_THROW(encode_blob(*scene.image, scene.plan, scene.views, options), Error);
  EXPECT_THROW(encode_blob(*scene.image, scene.plan, {}, {}), Error);
}

TEST(Verify, ReportsThePageThatDiffers) {
  const Scene scene;
  const EncodedImage encoded = EncodedImage::open(scene.blob);
  scene.image->page(11)[100] ^= std::byte{1};
  try {
    verify_image(encoded, *scene.image, scene.views);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Code::corrupt);
    EXPECT_EQ(e.object, "page 11");
  }
}

}  // namespace
}  // namespace medes
