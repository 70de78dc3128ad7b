#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "procfs/proc.h"
#include "procfs/program_data.h"

namespace medes {
namespace {

// This test's own .data: in a file mapping, written, and told from its constants and its text.
int g_written_data = 1;
const int g_constant = 2;

TEST(ProgramData, OfThisProgramIsFound) {
  *static_cast<volatile int*>(&g_written_data) = 3;
  const auto vmas = read_maps(getpid());
  const auto is_data = find_program_data(getpid(), vmas);
  const auto at = [&](const void* p) {
    for (size_t i = 0; i < vmas.size(); ++i)
      if (AddressRange{vmas[i].begin, vmas[i].end}.contains(reinterpret_cast<uint64_t>(p))) return i;
    return vmas.size();
  };
  const int on_the_stack = 0;
  ASSERT_LT(at(&g_written_data), vmas.size());
  EXPECT_TRUE(is_data[at(&g_written_data)]);
  EXPECT_FALSE(is_data[at(&g_constant)]);
  EXPECT_FALSE(is_data[at(reinterpret_cast<const void*>(&find_program_data))]);
  EXPECT_FALSE(is_data[at(&on_the_stack)]);
}

// A private mapping that somebody made of a file, this very program's even, is none of the loader's.
TEST(ProgramData, OtherPrivateMappingsAreLeftAlone) {
  char path[] = "/tmp/medes-program-data-XXXXXX";
  const int fd = mkstemp(path);
  ASSERT_GE(fd, 0);
  const std::vector<std::byte> bytes(4 * kPageBytes, std::byte{7});
  ASSERT_EQ(write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  void* p = mmap(nullptr, bytes.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  ASSERT_NE(p, MAP_FAILED);
  *static_cast<volatile char*>(p) = 1;
  const auto vmas = read_maps(getpid());
  const auto is_data = find_program_data(getpid(), vmas);
  bool seen = false;
  for (size_t i = 0; i < vmas.size(); ++i) {
    if (vmas[i].begin != reinterpret_cast<uint64_t>(p)) continue;
    seen = true;
    EXPECT_FALSE(is_data[i]);
  }
  EXPECT_TRUE(seen);
  munmap(p, bytes.size());
  close(fd);
  unlink(path);
}

TEST(ProgramData, RunsBecomeMappingsOfTheirOwn) {
  Vma v;
  v.begin = 0x10000, v.end = 0x18000, v.offset = 0x3000, v.inode = 5, v.device = 1, v.path = "/lib/x.so";
  v.prot = PROT_READ | PROT_WRITE, v.kind = VmaKind::file_private;
  Vma whole = v, heap = v;
  whole.begin = 0x20000, whole.end = 0x22000;
  heap.begin = 0x30000, heap.end = 0x31000, heap.kind = VmaKind::heap;
  const std::vector<Vma> vmas = {v, whole, heap};
  const std::vector<FileRun> runs = {{0x10000, 0x12000, 0x3000, 5, 1, 3},
                                     {0x15000, 0x16000, 0x8000, 5, 1, 3},
                                     {0x20000, 0x22000, 0, 5, 1, 3}};
  const auto out = with_anonymous_runs(vmas, runs);
  ASSERT_EQ(out.size(), 6u);
  uint64_t end = 0;
  for (const auto& m : out) {
    EXPECT_LE(end, m.begin);
    EXPECT_LT(m.begin, m.end);
    end = m.end;
    if (m.kind == VmaKind::file_private) EXPECT_EQ(m.offset, 0x3000 + (m.begin - 0x10000));
  }
  EXPECT_EQ(out[0].kind, VmaKind::anonymous);
  EXPECT_EQ(out[0].end, 0x12000u);
  EXPECT_EQ(out[2].kind, VmaKind::anonymous);
  EXPECT_EQ(out[2].begin, 0x15000u);
  EXPECT_EQ(out[3].kind, VmaKind::file_private);
  EXPECT_EQ(out[4].kind, VmaKind::anonymous);
  EXPECT_EQ(out[5].kind, VmaKind::heap);
  EXPECT_EQ(with_anonymous_runs(vmas, {}).size(), 3u);
}

}  // namespace
}  // namespace medes
