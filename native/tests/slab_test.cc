#include "store/slab.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "bases/base_set.h"
#include "common/checksum.h"
#include "store/shm_file.h"
#include "store/slab_format.h"
#include "tests/temporary_folder.h"

namespace medes {
namespace {

namespace fs = std::filesystem;

class SlabTest : public ::testing::Test {
 protected:
  std::string path(const char* name) const { return (directory / name).string(); }

  static std::shared_ptr<MemoryImage> image(size_t pages) {
    std::vector<std::byte> data(pages * kPageBytes);
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i / kPageBytes * 17 + i * 3);
    AddressSpace space;
    space.ranges = {{0x1000, 0x9000}, {0x7f0000000000, 0x7f0000100000}};
    return MemoryImage::from_buffer(data, 0x1000, space);
  }
  // Overwrites bytes of a finished (read-only) file.
  static void poke(const std::string& file, uint64_t offset, const void* bytes, size_t n) {
    ASSERT_EQ(chmod(file.c_str(), 0600), 0);
    const int fd = open(file.c_str(), O_WRONLY);
    ASSERT_GE(fd, 0);
    EXPECT_EQ(pwrite(fd, bytes, n, static_cast<off_t>(offset)), static_cast<ssize_t>(n));
    close(fd);
  }
  static Code open_code(const std::string& file) {
    try {
      Slab::open(file);
      return Code::ok;
    } catch (const Error& e) {
      return e.code;
    }
  }
  const testing::TemporaryFolder folder;
  const fs::path directory = folder.path();
};

TEST_F(SlabTest, KeepsThePagesThatWereChosen) {
  auto img = image(10);
  const std::vector<uint64_t> pages = {1, 2, 7};
  auto made = Slab::create(path("a.slab"), 0xfeed, *img, pages);
  auto slab = Slab::open(path("a.slab"));
  EXPECT_EQ(slab->base_id(), 0xfeedu);
  ASSERT_EQ(slab->page_count(), 3u);
  ASSERT_EQ(slab->space().ranges.size(), img->layout().space.ranges.size());
  EXPECT_EQ(slab->space().value_only, img->layout().space.value_only);
  for (size_t i = 0; i < pages.size(); ++i) {
    EXPECT_EQ(std::memcmp(slab->bytes().data() + i * kPageBytes, img->page(pages[i]), kPageBytes), 0);
    EXPECT_EQ(slab->page_checksums()[i], checksum64({img->page(pages[i]), kPageBytes}));
  }
  EXPECT_TRUE(slab->verify(0, 3));
  EXPECT_EQ(slab->view().bytes.size(), 3 * kPageBytes);
  EXPECT_EQ(fs::file_size(path("a.slab")), slab->file_bytes());
  EXPECT_EQ(std::distance(fs::directory_iterator(directory), fs::directory_iterator()), 1)
      << "no temporary file is left";
}

TEST_F(SlabTest, IsNeverOverwritten) {
  auto img = image(2);
  Slab::create(path("a.slab"), 1, *img, {});
  try {
    Slab::create(path("a.slab"), 2, *img, {});
    FAIL() << "an existing slab was replaced";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Code::already_exists);
  }
  EXPECT_EQ(Slab::open(path("a.slab"))->base_id(), 1u);
}

TEST_F(SlabTest, UnlinkKeepsTheMapping) {
  auto slab = Slab::create(path("a.slab"), 1, *image(2), {});
  slab->unlink();
  slab->unlink();
  EXPECT_FALSE(fs::exists(path("a.slab")));
  EXPECT_TRUE(slab->verify(0, 2));
  EXPECT_EQ(open_code(path("a.slab")), Code::not_found);
}

TEST_F(SlabTest, EveryDamagedHeaderByteIsNoticed) {
  Slab::create(path("a.slab"), 1, *image(3), {});
  std::vector<char> good(sizeof(SlabHeader));
  std::ifstream(path("a.slab"), std::ios::binary)
      .read(good.data(), static_cast<std::streamsize>(good.size()));
  for (size_t i = 0; i < good.size(); ++i) {
    const char bad = static_cast<char>(good[i] ^ 0x40);
    poke(path("a.slab"), i, &bad, 1);
    EXPECT_EQ(open_code(path("a.slab")), Code::corrupt) << "byte " << i;
    poke(path("a.slab"), i, &good[i], 1);
  }
  EXPECT_EQ(open_code(path("a.slab")), Code::ok);
}

TEST_F(SlabTest, KeepsTheAgentsMeta) {
  const std::string text = R"({"domain":"d"})";
  const Bytes meta = std::as_bytes(std::span(text));
  auto made = Slab::create(path("a.slab"), 1, *image(3), {}, meta);
  auto slab = Slab::open(path("a.slab"));
  EXPECT_TRUE(std::ranges::equal(slab->meta(), meta));
  EXPECT_EQ(slab->bytes().size(), 3 * kPageBytes);
  EXPECT_TRUE(slab->verify(0, 3));
  const char x = 0x55;
  poke(path("a.slab"), kPageBytes * 5, &x, 1);
  EXPECT_EQ(open_code(path("a.slab")), Code::corrupt) << "checksum of the meta";
}

// What a reader accepts of other versions: docs/formats.md.
TEST_F(SlabTest, ReadsVersionOneAndWhatNewerVersionsSayThatItMay) {
  Slab::create(path("a.slab"), 1, *image(3), {});
  std::vector<std::byte> page(kPageBytes);
  std::ifstream(path("a.slab"), std::ios::binary)
      .read(reinterpret_cast<char*>(page.data()), static_cast<std::streamsize>(page.size()));
  const auto code_with = [&](const SlabHeader& h) {
    std::vector<std::byte> changed(kPageBytes);
    std::memcpy(changed.data(), &h, sizeof h);
    const size_t at = h.version == 1 ? kSlabV1HeaderBytes : kSlabChecksumOffset;
    const uint64_t checksum = checksum64(Bytes(changed).first(at));
    std::memcpy(changed.data() + at, &checksum, sizeof checksum);
    poke(path("a.slab"), 0, reinterpret_cast<const char*>(changed.data()), changed.size());
    return open_code(path("a.slab"));
  };
  SlabHeader header;
  std::memcpy(&header, page.data(), sizeof header);
  SlabHeader first = header;
  first.version = 1;
  first.readable_from = 0;
  EXPECT_EQ(code_with(first), Code::ok);
  SlabHeader newer = header;
  newer.version = 7;
  newer.section_count = 1;
  newer.sections[0] = {99, 0, header.file_bytes, 0, 0};
  EXPECT_EQ(code_with(newer), Code::ok) << "an optional section is skipped";
  newer.sections[0].required = 1;
  EXPECT_EQ(code_with(newer), Code::unsupported);
  newer.section_count = 0;
  newer.readable_from = kSlabVersion + 1;
  EXPECT_EQ(code_with(newer), Code::unsupported);
  newer.readable_from = kSlabVersion;
  newer.section_count = kSlabSections + 1;
  EXPECT_EQ(code_with(newer), Code::corrupt);
  newer.section_count = 1;
  newer.sections[0] = {99, 0, header.file_bytes, 1, 0};
  EXPECT_EQ(code_with(newer), Code::corrupt) << "a section beyond the file";
}

TEST_F(SlabTest, DamagedTablePageOrLengthIsNoticed) {
  auto slab = Slab::create(path("a.slab"), 1, *image(3), {});
  const char x = 0x55;
  poke(path("a.slab"), slab->file_bytes() - 1, &x, 1);
  EXPECT_TRUE(slab->verify(0, 2));
  EXPECT_FALSE(slab->verify(2, 1)) << "page checksum";
  poke(path("a.slab"), kPageBytes + 3, &x, 1);
  EXPECT_EQ(open_code(path("a.slab")), Code::corrupt) << "table checksum";
  ASSERT_EQ(truncate(path("a.slab").c_str(), 5000), 0);
  EXPECT_EQ(open_code(path("a.slab")), Code::corrupt) << "length";
  ASSERT_EQ(truncate(path("a.slab").c_str(), 0), 0);
  EXPECT_EQ(open_code(path("a.slab")), Code::corrupt) << "empty";
}

TEST_F(SlabTest, SymbolicLinksAndFoldersAreRefused) {
  Slab::create(path("a.slab"), 1, *image(1), {});
  fs::create_symlink(path("a.slab"), path("link.slab"));
  EXPECT_NE(open_code(path("link.slab")), Code::ok);
  EXPECT_NE(open_code(directory.string()), Code::ok);
}

TEST_F(SlabTest, FullStoreIsAnErrorAndLeavesNothing) {
  const std::string small = path("small");
  fs::create_directory(small);
  if (mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1m,mode=700"))
    GTEST_SKIP() << "cannot mount a small tmpfs: " << std::strerror(errno);
  Code code = Code::ok;
  try {
    Slab::create(small + "/a.slab", 1, *image(600), {});
  } catch (const Error& e) {
    code = e.code;
  }
  const auto left = std::distance(fs::directory_iterator(small), fs::directory_iterator());
  umount(small.c_str());
  EXPECT_EQ(code, Code::store_full);
  EXPECT_EQ(left, 0);
}

TEST_F(SlabTest, LocalSlabIsPresentInABaseSet) {
  auto slab = Slab::create(path("a.slab"), 77, *image(4), {});
  BaseSet set;
  const uint32_t slot = set.add_local(slab);
  EXPECT_TRUE(set.local(slot));
  const std::vector<Extent> extents = {{slot, kPageBytes, 16}};
  EXPECT_EQ(set.ensure(extents, std::chrono::seconds(1)), Code::ok);
  EXPECT_EQ(set.view(slot).bytes.data(), slab->bytes().data()) << "mapped, not copied";
  EXPECT_EQ(set.remote_read_bytes(), 0u);
}

}  // namespace
}  // namespace medes
