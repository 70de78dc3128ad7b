// A second encoding of the same memory takes over what did not change, and is as right as the first.
#include "dedup/reuse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "codec/blob_layout.h"
#include "common/error.h"
#include "dedup/encoder.h"
#include "dedup/survey.h"
#include "registry/fingerprint_index.h"
#include "tests/engine_test_util.h"

namespace medes {
namespace {

using testing::bytes_of;
using testing::Random;
using testing::Words;

constexpr uint64_t kPages = 200, kWords = kPageBytes / 8;

AddressSpace space_of_process() {
  return {{{testing::kHeap, testing::kHeap + testing::kRegionBytes},
           {testing::kMapped, testing::kMapped + testing::kRegionBytes}},
          false};
}

std::shared_ptr<MemoryImage> image_of(const Words& words, uint64_t address) {
  return MemoryImage::from_buffer(bytes_of(words), address, space_of_process());
}

class Sandbox {
 public:
  explicit Sandbox(std::vector<uint64_t> base_ids) {
    for (uint64_t id : base_ids) add_base(id);
  }
  void add_base(uint64_t id) {
    bases_.push_back(testing::heap_like(kPages, id));
    const Fingerprints f = fingerprint_pages(bytes_of(bases_.back()), space_of_process(), 8);
    index_.insert(id, f.hashes, f.positions, 8);
  }
  const Words& base(size_t i) const { return bases_[i]; }
  std::vector<BaseView> views(const WindowPlan& plan) const {
    std::vector<BaseView> out;
    for (uint64_t id : plan.base_ids()) {
      const auto same = [&](const Words& b) { return b == testing::heap_like(kPages, id); };
      out.push_back({id, bytes_of(*std::find_if(bases_.begin(), bases_.end(), same)), space_of_process()});
    }
    return out;
  }
  Survey survey(const MemoryImage& image, const ImageLayout* layout = nullptr,
                const EncodedImage* encoded = nullptr) {
    EarlierImage earlier;
    if (encoded != nullptr) earlier = {layout, std::shared_ptr<const EncodedImage>(encoded, [](auto*) {})};
    return survey_image(image, 8, index_, earlier);
  }
  // Encodes, opens and verifies; `views` has those of the encoding's bases.
  WipedBytes encode(const MemoryImage& image, const Survey& found, std::vector<uint64_t> wanted_first = {}) {
    EncodeOptions options;
    options.wanted_first = std::move(wanted_first);
    options.reuse = found.reuse.get();
    WindowPlan p = plan_windows(image.page_count(), found.fingerprints, found.locations);
    if (found.reuse) p = plan_with_reuse(p, *found.reuse);
    auto blob = encode_blob(image, p, views(p), options);
    verify_image(EncodedImage::open(blob), image, views(p));
    return blob;
  }

 private:
  std::vector<Words> bases_;
  FingerprintIndex index_;
};

TEST(Reuse, TakesOverWhatDidNotChange) {
  Sandbox sandbox({11});
  Words words = testing::moved(sandbox.base(0), 0x40000, -0x9000, 20, 3);
  const auto first = image_of(words, 0x10000);
  const auto blob = sandbox.encode(*first, sandbox.survey(*first));
  const EncodedImage encoded = EncodedImage::open(blob);

  const Survey all = sandbox.survey(*first, &first->layout(), &encoded);
  EXPECT_EQ(all.reuse->reused(), kPages);
  EXPECT_EQ(sandbox.encode(*first, all), blob);

  for (uint64_t page : {0u, 7u, 8u, 199u}) words[page * kWords + 5] ^= 0x1234567;
  const auto second = image_of(words, 0x10000);
  const Survey most = sandbox.survey(*second, &first->layout(), &encoded);
  EXPECT_EQ(most.reuse->reused(), kPages - 4);
  EXPECT_EQ(most.reuse->old_page(7), Reuse::kNoPage);
  EXPECT_EQ(most.reuse->old_page(9), 9u);
  const Fingerprints whole = fingerprint_image(*second, 8);
  for (uint64_t page = 0; page < kPages; ++page)
    for (size_t i = page * 8; i < page * 8 + 8; ++i)
      EXPECT_EQ(most.fingerprints.hashes[i],
                most.reuse->old_page(page) == Reuse::kNoPage ? whole.hashes[i] : 0)
          << page;
  (void)sandbox.encode(*second, most);
}

std::vector<uint64_t> loose_pages(Bytes blob) {
  const EncodedImage encoded = EncodedImage::open(blob);
  const auto scratch = EncodedImage::make_scratch();
  std::vector<uint64_t> out;
  for (uint64_t page = 0; page < encoded.page_count(); ++page) {
    StoredPage stored;
    EXPECT_TRUE(encoded.stored_windows(page, *scratch, stored));
    if (stored.kind == EntryKind::loose) out.push_back(page);
  }
  return out;
}

TEST(Reuse, PagesWantedFirstAreLooseFromTheNextEncodingOn) {
  using Pages = std::vector<uint64_t>;
  Sandbox sandbox({11});
  const auto image = image_of(testing::moved(sandbox.base(0), 0x40000, -0x9000, 20, 3), 0x10000);
  const auto before = sandbox.encode(*image, sandbox.survey(*image));
  EXPECT_EQ(loose_pages(before), Pages{});
  const EncodedImage encoded = EncodedImage::open(before);
  const Survey all = sandbox.survey(*image, &image->layout(), &encoded);
  ASSERT_EQ(all.reuse->reused(), kPages);
  Pages wanted{40, 3, 39};
  for (uint64_t page = 64; page < 80; ++page) wanted.push_back(page);  // a whole group: better compressed
  wanted.push_back(1'000'000);                                         // none of this image
  const auto after = sandbox.encode(*image, all, wanted);
  EXPECT_EQ(loose_pages(after), (Pages{3, 39, 40}));
  EXPECT_EQ(after, sandbox.encode(*image, sandbox.survey(*image), wanted)) << "as without reuse";
  // What is not wanted any more stays as it was, rather than be compressed again.
  const EncodedImage second = EncodedImage::open(after);
  const Survey again = sandbox.survey(*image, &image->layout(), &second);
  EXPECT_EQ(sandbox.encode(*image, again), after);
  EXPECT_EQ(loose_pages(sandbox.encode(*image, again, {3, 4, 100})), (Pages{3, 4, 39, 40, 100}));
}

// As when a live sandbox writes between the two passes: what is stored is what is there at the second.
TEST(Reuse, APageThatChangesAfterTheSurveyIsEncodedAfresh) {
  Sandbox sandbox({11});
  const Words words = testing::moved(sandbox.base(0), 0x40000, -0x9000, 20, 3);
  const auto image = image_of(words, 0x10000);
  const auto blob = sandbox.encode(*image, sandbox.survey(*image));
  const EncodedImage encoded = EncodedImage::open(blob);
  const Survey found = sandbox.survey(*image, &image->layout(), &encoded);
  ASSERT_EQ(found.reuse->reused(), kPages);
  for (uint64_t page : {3u, 40u, 41u, 199u}) image->page(page)[1000] ^= std::byte{1};
  (void)sandbox.encode(*image, found);  // verifies
}

// Pages come and go in front, so that no group holds the pages it held, and a base is there that was not.
TEST(Reuse, SurvivesShiftsRoundAfterRound) {
  Random random(99);
  Sandbox sandbox({11, 12});
  Words words = testing::moved(sandbox.base(0), 0x40000, -0x9000, 20, 3);
  std::copy_n(sandbox.base(1).data(), 40 * kWords, words.data() + 100 * kWords);
  std::fill_n(words.data() + 50 * kWords, kWords, 0);
  for (size_t i = 0; i < kWords; ++i) words[60 * kWords + i] = random.next();  // stored as it is
  uint64_t address = 0x100000;
  auto image = image_of(words, address);
  auto blob = sandbox.encode(*image, sandbox.survey(*image));
  for (uint64_t round = 0; round < 8; ++round) {
    const size_t drop = random.below(5) * kWords, grow = random.below(5) * kWords;
    words.erase(words.begin(), words.begin() + static_cast<ptrdiff_t>(drop));
    address += drop * 8;
    const Words more = testing::heap_like(8, 1000 + round);
    words.insert(words.end(), more.begin(), more.begin() + static_cast<ptrdiff_t>(grow));
    for (int i = 0; i < 10; ++i) words[random.below(words.size())] += 1;
    if (round == 3) {
      sandbox.add_base(13);
      std::copy_n(sandbox.base(2).data(), 20 * kWords, words.data() + 20 * kWords);
    }
    const auto next = image_of(words, address);
    const EncodedImage encoded = EncodedImage::open(blob);
    const Survey found = sandbox.survey(*next, &image->layout(), &encoded);
    const Reuse& reuse = *found.reuse;
    EXPECT_GT(reuse.reused(), next->page_count() / 2);
    for (uint64_t page = 0; page < next->page_count(); ++page)
      if (reuse.old_page(page) != Reuse::kNoPage)
        EXPECT_EQ(std::memcmp(next->page(page), image->page(reuse.old_page(page)), kPageBytes), 0);
    auto again = sandbox.encode(*next, found);
    blob = std::move(again);
    image = next;
  }
}

TEST(Reuse, AnotherProcessHasNothingToTakeOver) {
  Sandbox sandbox({11});
  const auto first = image_of(sandbox.base(0), 0x10000);
  const auto blob = sandbox.encode(*first, sandbox.survey(*first));
  const EncodedImage encoded = EncodedImage::open(blob);
  const auto second = image_of(sandbox.base(0), 0x10000);
  second->layout().processes[0].start_time_ticks = 5;
  EXPECT_EQ(sandbox.survey(*second, &first->layout(), &encoded).reuse->reused(), 0u);
  const auto empty = image_of({}, 0x10000);
  EXPECT_EQ(sandbox.survey(*empty, &first->layout(), &encoded).reuse->reused(), 0u);
}

TEST(Reuse, APlanThatWasNotMadeForItIsRefused) {
  Sandbox sandbox({11});
  const auto image = image_of(sandbox.base(0), 0x10000);
  const auto blob = sandbox.encode(*image, sandbox.survey(*image));
  const EncodedImage encoded = EncodedImage::open(blob);
  const Survey found = sandbox.survey(*image, &image->layout(), &encoded);
  const auto shorter = image_of(testing::heap_like(3, 11), 0x10000);
  EXPECT_THROW((void)sandbox.survey(*image, &shorter->layout(), &encoded), Error);
  EncodeOptions options;
  options.reuse = found.reuse.get();
  const WindowPlan none = plan_windows(image->page_count(), found.fingerprints, found.locations);
  EXPECT_TRUE(none.base_ids().empty());
  EXPECT_THROW((void)encode_blob(*image, none, {}, options), Error);
}

}  // namespace
}  // namespace medes
