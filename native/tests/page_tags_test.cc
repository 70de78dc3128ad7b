// Keyed page tags: their definition at every level, what they tell apart, and a page that is made up to fit
// an unkeyed checksum.
#include "codec/page_tags.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>

#include "codec/blob_layout.h"
#include "codec/nh_kernels.h"
#include "common/checksum.h"
#include "dedup/encoder.h"
#include "registry/fingerprint_index.h"
#include "store/sandbox_file.h"
#include "store/seal.h"
#include "store/shm_file.h"
#include "tests/engine_test_util.h"
#include "tests/temporary_folder.h"

namespace medes {
namespace {

using testing::bytes_of;
using testing::Random;
using testing::Words;

StoreKey counted_key(int first = 0) {
  StoreKey key;
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::byte>(first + static_cast<int>(i));
  return key;
}

TagNonce counted_nonce() {
  TagNonce nonce;
  for (size_t i = 0; i < nonce.size(); ++i) nonce[i] = static_cast<std::byte>(0xa0 + i);
  return nonce;
}

Words random_words(size_t pages, uint64_t seed) {
  Random random(seed);
  Words words(pages * kPageBytes / 8);
  for (uint64_t& w : words) w = random.next();
  return words;
}

const std::byte* page_of(const Words& words, size_t page) {
  return bytes_of(words).data() + page * kPageBytes;
}

TEST(PageTags, SiphashIsOpenssls) {
  const std::unique_ptr<EVP_MAC, void (*)(EVP_MAC*)> mac(EVP_MAC_fetch(nullptr, "SIPHASH", nullptr),
                                                         EVP_MAC_free);
  ASSERT_NE(mac, nullptr);
  Random random(1);
  for (int round = 0; round < 50; ++round) {
    const uint64_t key[2] = {random.next(), random.next()};
    const uint64_t words[3] = {random.next(), random.next(), random.next()};
    const std::unique_ptr<EVP_MAC_CTX, void (*)(EVP_MAC_CTX*)> context(EVP_MAC_CTX_new(mac.get()),
                                                                       EVP_MAC_CTX_free);
    unsigned size = 8;
    const OSSL_PARAM parameters[] = {OSSL_PARAM_construct_uint("size", &size), OSSL_PARAM_construct_end()};
    uint64_t expected = 0;
    size_t length = 0;
    ASSERT_EQ(
        EVP_MAC_init(context.get(), reinterpret_cast<const unsigned char*>(key), sizeof key, parameters), 1);
    ASSERT_EQ(EVP_MAC_update(context.get(), reinterpret_cast<const unsigned char*>(words), sizeof words), 1);
    ASSERT_EQ(
        EVP_MAC_final(context.get(), reinterpret_cast<unsigned char*>(&expected), &length, sizeof expected),
        1);
    ASSERT_EQ(siphash24(key, words), expected);
  }
}

// As UMAC's authors write it, for 32-bit words.
uint64_t nh(const uint32_t* message, const uint32_t* key) {
  uint64_t sum = 0;
  for (size_t i = 0; i < kPageBytes / 4; i += 2)
    sum += static_cast<uint64_t>(message[i] + key[i]) * static_cast<uint64_t>(message[i + 1] + key[i + 1]);
  return sum;
}

TEST(PageTags, EveryLevelFollowsTheDefinition) {
  alignas(64) std::byte key[kPageBytes + 64];
  const Words key_words = random_words(2, 2);
  std::memcpy(key, bytes_of(key_words).data(), sizeof key);
  Words words = random_words(3, 3);
  std::fill_n(words.begin(), 512, ~0ull);  // every carry there is
  std::fill_n(words.begin() + 512, 512, 0);
  for (size_t at : {size_t{0}, kPageBytes, 2 * kPageBytes, kPageBytes + 8, size_t{16}}) {
    alignas(64) uint32_t message[kPageBytes / 4], key32[kPageBytes / 4 + 16];
    std::memcpy(message, bytes_of(words).data() + at, sizeof message);
    std::memcpy(key32, key, sizeof key32);
    const uint64_t expected[2] = {nh(message, key32), nh(message, key32 + 16)};
    for (SimdLevel level : simd_levels()) {
      const auto kernel = level == SimdLevel::avx512 ? kernels::nh_avx512
                          : level == SimdLevel::avx2 ? kernels::nh_avx2
                                                     : kernels::nh_scalar;
      uint64_t sums[2] = {};
      kernel(bytes_of(words).data() + at, key, sums);
      EXPECT_EQ(sums[0], expected[0]) << simd_name(level) << " at " << at;
      EXPECT_EQ(sums[1], expected[1]) << simd_name(level) << " at " << at;
    }
  }
}

// What agents of other versions and CPUs have stored must stay right.
TEST(PageTags, ValuesNeverChange) {
  const Words words = random_words(1, 4);
  const Words zero(512);
  for (SimdLevel level : simd_levels()) {
    const PageTags tags(counted_key(), counted_nonce(), level);
    EXPECT_EQ(tags.tag(0, page_of(zero, 0)), 3442696780938128784u) << simd_name(level);
    EXPECT_EQ(tags.tag(0, page_of(words, 0)), 8117430108533071328u) << simd_name(level);
    EXPECT_EQ(tags.tag(77'000'000, page_of(words, 0)), 5886306433860347526u) << simd_name(level);
    EXPECT_EQ(tags.key_check(), 2034684349907413631u) << simd_name(level);
  }
}

TEST(PageTags, TellApartKeysImagesPagesAndEveryBit) {
  const Words words = random_words(1, 5);
  const PageTags tags(counted_key(), counted_nonce());
  std::set<uint64_t> seen;
  const auto fresh = [&](uint64_t tag) { return seen.insert(tag).second; };
  EXPECT_TRUE(fresh(tags.tag(0, page_of(words, 0))));
  TagNonce nonce = counted_nonce();
  nonce[15] ^= std::byte{1};
  EXPECT_TRUE(fresh(PageTags(counted_key(), nonce).tag(0, page_of(words, 0))));
  EXPECT_TRUE(fresh(PageTags(counted_key(1), counted_nonce()).tag(0, page_of(words, 0))));
  for (uint64_t page : {1ull, 2ull, 1ull << 32}) EXPECT_TRUE(fresh(tags.tag(page, page_of(words, 0))));
  for (size_t bit = 0; bit < kPageBytes * 8; ++bit) {
    Words changed = words;
    changed[bit / 64] ^= 1ull << bit % 64;
    ASSERT_TRUE(fresh(tags.tag(0, page_of(changed, 0)))) << bit;
  }
  for (size_t i = 0; i < 511; ++i) {  // sums care where a word stands
    Words changed = words;
    std::swap(changed[i], changed[i + 1]);
    ASSERT_TRUE(fresh(tags.tag(0, page_of(changed, 0)))) << i;
  }
}

// XXH3 adds up words of a block, and products of their halves after an exclusive or with a known secret. So
// five words of any page can be exchanged for others with both sums as they were.
Words made_up(const Words& page) {
  constexpr uint64_t kLow = 0xffffffff;
  Words out = page;
  uint64_t secret[5], products = 0, words = 0;
  std::memcpy(secret, XXH3_kSecret, sizeof secret);
  for (size_t i = 0; i < 5; ++i) {
    const uint64_t mixed = page[i * 8] ^ secret[i];
    products += (mixed & kLow) * (mixed >> 32);
    words += page[i * 8];
  }
  const uint64_t twice = (products >> 32) * 2, half = std::min(twice, kLow);
  out[0] = secret[0] ^ ((products & kLow) << 32 | 1);
  out[8] = secret[1] ^ (half << 32 | 1ull << 31);
  out[16] = secret[2] ^ ((twice - half) << 32 | 1ull << 31);
  const uint64_t rest = words - out[0] - out[8] - out[16] - (secret[3] & ~kLow) - (secret[4] & kLow);
  out[24] = (secret[3] & ~kLow) | (rest & kLow);
  out[32] = (secret[4] & kLow) | (rest & ~kLow);
  return out;
}

struct Encoded {
  Words base = random_words(4, 6), target = base;
  std::shared_ptr<MemoryImage> image = MemoryImage::from_buffer(bytes_of(target), 0, {});
  WindowPlan plan;
  WipedBytes blob;

  explicit Encoded(const StoreKey* key) {
    FingerprintIndex index;
    const Fingerprints prints = fingerprint_pages(bytes_of(base), {}, 8);
    index.insert(1, prints.hashes, prints.positions, 8);
    plan = plan_windows(4, prints, index.lookup(prints.hashes, 8));
    EncodeOptions options;
    options.key = key;
    blob = encode_blob(*image, plan, views(base), options);
  }
  static std::vector<BaseView> views(const Words& base) { return {{1, bytes_of(base), {}}}; }
};

TEST(PageTags, APageThatIsMadeUpToFitAChecksumFitsNoTag) {
  const StoreKey key = counted_key();
  const auto scratch = EncodedImage::make_scratch();
  alignas(64) std::byte out[kPageBytes];
  for (const StoreKey* k : {static_cast<const StoreKey*>(nullptr), &key}) {
    const Encoded encoded(k);
    const EncodedImage image = EncodedImage::open(encoded.blob, k);
    EXPECT_EQ(image.keyed(), k != nullptr);
    Words lying = encoded.base;
    for (size_t page = 0; page < 4; ++page) {
      const Words before(lying.begin() + static_cast<ptrdiff_t>(page * 512),
                         lying.begin() + static_cast<ptrdiff_t>((page + 1) * 512));
      const Words after = made_up(before);
      ASSERT_NE(before, after);
      ASSERT_EQ(checksum64(bytes_of(before)), checksum64(bytes_of(after)));
      std::copy(after.begin(), after.end(), lying.begin() + static_cast<ptrdiff_t>(page * 512));
    }
    for (uint64_t page = 0; page < 4; ++page) {
      ASSERT_EQ(image.kind(page), PageKind::identical);
      EXPECT_EQ(image.decode(page, Encoded::views(encoded.base), out, *scratch), Code::ok);
      // The checksum takes it for right: that is why there are tags.
      EXPECT_EQ(image.decode(page, Encoded::views(lying), out, *scratch),
                k == nullptr ? Code::ok : Code::corrupt);
    }
  }
}

TEST(PageTags, AnImageIsReadWithItsOwnKeyOnly) {
  const StoreKey key = counted_key(), other = counted_key(1);
  const Encoded encoded(&key);
  verify_image(EncodedImage::open(encoded.blob, &key), *encoded.image, Encoded::views(encoded.base));
  EXPECT_THROW((void)EncodedImage::open(encoded.blob, &other), Error);
  const EncodedImage without = EncodedImage::open(encoded.blob);  // its tables can be looked at
  alignas(64) std::byte out[kPageBytes];
  const auto scratch = EncodedImage::make_scratch();
  EXPECT_EQ(without.page_count(), 4u);
  EXPECT_EQ(without.decode(0, Encoded::views(encoded.base), out, *scratch), Code::permission_denied);
  EXPECT_FALSE(without.matches(0, encoded.image->page(0)));
  EXPECT_NE(Encoded(&key).blob, encoded.blob);  // another image, other tags
}

// A page and its tag, both of them right, in another page's place.
TEST(PageTags, AnotherPagesTagDoesNotFit) {
  const StoreKey key = counted_key();
  Encoded encoded(&key);
  blob::Header header;
  std::memcpy(&header, encoded.blob.data(), sizeof header);
  auto* const tags = reinterpret_cast<uint64_t*>(encoded.blob.data() + header.page_checks.offset);
  std::swap(tags[0], tags[1]);
  header.page_checks.checksum =
      checksum64({reinterpret_cast<const std::byte*>(tags), header.page_checks.bytes});
  blob::put_header(header, encoded.blob.data());
  const EncodedImage image = EncodedImage::open(encoded.blob, &key);
  Words exchanged = encoded.base;
  std::swap_ranges(exchanged.begin(), exchanged.begin() + 512, exchanged.begin() + 512);
  alignas(64) std::byte out[kPageBytes];
  const auto scratch = EncodedImage::make_scratch();
  EXPECT_EQ(image.decode(0, Encoded::views(exchanged), out, *scratch), Code::corrupt);
  EXPECT_EQ(image.decode(2, Encoded::views(exchanged), out, *scratch), Code::ok);
}

class KeyedStore : public ::testing::Test {
 protected:
  static constexpr uint64_t kEncodedOffset = 64;  // of SandboxHeader::encoded_offset
  testing::TemporaryFolder folder_;
  const std::string path_ = folder_.path() / "sandbox-a.medes";
  const StoreKey key_ = counted_key();

  void SetUp() override { set_store_key(folder_.path(), key_); }
};

// Files of the version before: a sealed file whose pages carry checksums.
TEST_F(KeyedStore, FilesWithoutTagsAreRead) {
  const Encoded encoded(nullptr);
  const auto file = SandboxFile::create(path_, {}, encoded.image->layout(), encoded.blob);
  const auto again = SandboxFile::open(path_);
  EXPECT_FALSE(again->encoded().keyed());
  verify_image(again->encoded(), *encoded.image, Encoded::views(encoded.base));
}

// Who has no key cannot make one of them out of a file with tags, nor change one while it is mapped.
TEST_F(KeyedStore, WritingTheOlderVersionIntoAFileIsCorrupt) {
  const Encoded encoded(&key_);
  const auto file = SandboxFile::create(path_, {}, encoded.image->layout(), encoded.blob);
  EXPECT_TRUE(file->encoded().keyed());
  const Encoded older(nullptr);
  ASSERT_LE(older.blob.size(), encoded.blob.size());
  {
    const ShmFd fd(path_, true);
    ShmMapping mapping(fd.get(), 0, fd.size(), true, path_);
    std::byte* const bytes = mapping.writable_bytes().data();
    uint64_t at = 0;
    std::memcpy(&at, bytes + kEncodedOffset, sizeof at);
    std::memcpy(bytes + at, older.blob.data(), older.blob.size());
  }
  alignas(64) std::byte out[kPageBytes];
  const auto scratch = EncodedImage::make_scratch();
  for (uint64_t page = 0; page < 4; ++page)
    EXPECT_EQ(file->encoded().decode(page, Encoded::views(encoded.base), out, *scratch), Code::corrupt);
  try {
    (void)SandboxFile::open(path_);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Code::corrupt);
    EXPECT_NE(std::string(e.what()).find("seal"), std::string::npos) << e.what();
  }
}

TEST_F(KeyedStore, AFileOfAnotherStoresTagsIsNotWritten) {
  const StoreKey other = counted_key(9);
  const Encoded encoded(&other);
  EXPECT_THROW((void)SandboxFile::create(path_, {}, encoded.image->layout(), encoded.blob), Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

}  // namespace
}  // namespace medes
