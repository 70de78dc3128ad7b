#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "common/error.h"
#include "image/image.h"
#include "procfs/capture.h"
#include "procfs/pagemap.h"
#include "procfs/proc.h"

namespace medes {
namespace {

ImageLayout sample_layout() {
  ImageLayout layout;
  layout.space.ranges = {{0x1000, 0x9000}, {0x40000000, 0x50000000}};
  for (uint32_t i = 0; i < 2; ++i) {
    ProcessLayout p;
    p.pid = 100 + static_cast<pid_t>(i);
    p.start_time_ticks = 7000 + i;
    Vma v;
    v.begin = 0x1000, v.end = 0x9000, v.prot = PROT_READ | PROT_WRITE, v.kind = VmaKind::heap;
    v.path = "[heap]";
    p.vmas.push_back(v);
    layout.processes.push_back(p);
  }
  layout.runs = {{0, 0x1000, 0, 2}, {0, 0x3000, 2, 1}, {0, 0x5000, 3, 1}, {1, 0x6000, 4, 3}};
  layout.page_count = 7;
  return layout;
}

TEST(ImageLayout, RoundTripsThroughBytes) {
  const ImageLayout layout = sample_layout();
  const ImageLayout back = ImageLayout::parse(layout.serialise());
  EXPECT_EQ(back.page_count, 7u);
  EXPECT_EQ(back.serialise(), layout.serialise());
  ASSERT_EQ(back.processes.size(), 2u);
  EXPECT_EQ(back.processes[1].pid, 101);
  EXPECT_EQ(back.processes[1].vmas[0].path, "[heap]");
  EXPECT_EQ(back.runs[3].first_page, 4u);
}

TEST(ImageLayout, EveryFlippedByteAndEveryTruncationIsCorrupt) {
  const auto good = sample_layout().serialise();
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{0x40};
    EXPECT_THROW(ImageLayout::parse(bad), Error) << "byte " << i;
    EXPECT_THROW(ImageLayout::parse(Bytes(good).first(i)), Error) << "length " << i;
  }
}

TEST(ImageLayout, AdjacencyFollowsAddressesNotIndexes) {
  const ImageLayout layout = sample_layout();
  EXPECT_TRUE(layout.adjacent(0));
  EXPECT_TRUE(layout.adjacent(1));   // across runs that touch
  EXPECT_FALSE(layout.adjacent(2));  // a hole
  EXPECT_FALSE(layout.adjacent(3));  // another process
  EXPECT_FALSE(layout.adjacent(6));  // the last page
}

TEST(ImageLayout, FindsPagesByAddress) {
  const ImageLayout layout = sample_layout();
  EXPECT_EQ(layout.find(0, 0x2fff), 1u);
  EXPECT_EQ(layout.find(0, 0x4000), ImageLayout::kNoPage);
  EXPECT_EQ(layout.find(0, 0x6000), ImageLayout::kNoPage);
  EXPECT_EQ(layout.find(1, 0x8000), 6u);
  EXPECT_EQ(layout.find(1, 0x1000), ImageLayout::kNoPage);
}

TEST(MemoryImage, FromBufferPadsTheLastPageWithZeros) {
  std::vector<std::byte> data(5000, std::byte{7});
  const auto image = MemoryImage::from_buffer(data, 0x10000, {});
  EXPECT_EQ(image->page_count(), 2u);
  EXPECT_EQ(image->page(1)[903], std::byte{7});
  EXPECT_EQ(image->page(1)[904], std::byte{0});
  EXPECT_THROW(MemoryImage::from_buffer(data, 0x10001, {}), Error);
}

TEST(Space, MergesSmallGapsAndKeepsAtMostEightRanges) {
  ProcessLayout p;
  for (uint64_t i = 0; i < 12; ++i) {
    Vma v;
    v.begin = (i + 1) << 40, v.end = v.begin + 0x1000;
    p.vmas.push_back(v);
    v.begin += 1 << 20, v.end += 1 << 20;  // near: merges with the one before
    p.vmas.push_back(v);
  }
  Vma v;
  v.begin = 0xffffffffff600000, v.end = 0xffffffffff601000, v.path = "[vsyscall]";
  p.vmas.push_back(v);
  const auto space = space_of(std::span(&p, 1));
  ASSERT_EQ(space.ranges.size(), kMaxRanges);
  EXPECT_EQ(space.ranges.back().end, (12ull << 40) + (1 << 20) + 0x1000);
}

TEST(Pagemap, SeesWrittenPagesOnly) {
  constexpr size_t kPages = 64;
  auto* p = static_cast<char*>(
      mmap(nullptr, kPages * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(p, MAP_FAILED);
  for (size_t i : {3, 4, 5, 20}) p[i * kPageBytes] = 1;
  (void)*static_cast<volatile char*>(p + 40 * kPageBytes);  // the shared zero page
  const auto base = reinterpret_cast<uint64_t>(p);
  std::vector<PageSpan> spans;
  Pagemap(getpid()).private_pages(base, base + kPages * kPageBytes, spans);
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(spans[0].address, base + 3 * kPageBytes);
  EXPECT_EQ(spans[0].count, 3u);
  EXPECT_EQ(spans[1].address, base + 20 * kPageBytes);
  munmap(p, kPages * kPageBytes);
}

TEST(Processes, AMissingProcessIsProcessGone) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  for (auto call : {+[](pid_t p) { (void)read_maps(p); }, +[](pid_t p) { (void)process_start_time(p); },
                    +[](pid_t p) { (void)capture(std::span(&p, 1)); },
                    +[](pid_t p) { (void)private_bytes(std::span(&p, 1)); },
                    +[](pid_t p) { (void)process_tree(std::span(&p, 1)); }}) {
    try {
      call(child);
      FAIL() << "no error for a process that is gone";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Code::process_gone) << e.what();
    }
  }
}

// More than one part is copied, and what cannot be read leaves no hole.
TEST(Capture, PagesThatCannotBeReadAreLeftOut) {
  constexpr uint64_t kPages = 9000, kClosed = 3000, kClosedPages = 100;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  auto* const p = static_cast<char*>(
      mmap(nullptr, kPages * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(p, MAP_FAILED);
  const auto base = reinterpret_cast<uint64_t>(p);
  const pid_t child = fork();
  if (child == 0) {
    for (uint64_t i = 0; i < kPages; ++i) std::memcpy(p + i * kPageBytes, &i, sizeof i);
    mprotect(p + kClosed * kPageBytes, kClosedPages * kPageBytes, PROT_NONE);
    (void)!write(ready[1], "r", 1);
    pause();
    _exit(0);
  }
  char r;
  ASSERT_EQ(read(ready[0], &r, 1), 1);
  const auto image = capture(std::span(&child, 1));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  const ImageLayout& layout = image->layout();
  uint64_t next = 0;
  for (const PageRun& run : layout.runs) {
    EXPECT_EQ(run.first_page, next);
    next += run.count;
  }
  EXPECT_EQ(next, layout.page_count);
  for (uint64_t i = 0; i < kPages; ++i) {
    const uint64_t page = layout.find(0, base + i * kPageBytes);
    if (i >= kClosed && i < kClosed + kClosedPages) {
      EXPECT_EQ(page, ImageLayout::kNoPage) << i;
      continue;
    }
    ASSERT_NE(page, ImageLayout::kNoPage) << i;
    uint64_t content;
    std::memcpy(&content, image->page(page), sizeof content);
    ASSERT_EQ(content, i);
  }
  munmap(p, kPages * kPageBytes);
  close(ready[0]);
  close(ready[1]);
}

// A child whose memory the test reads while it changes it on command, one page index at a time.
class Child {
 public:
  static constexpr uint64_t kPages = 300;
  Child() {
    memory_ = static_cast<char*>(
        mmap(nullptr, kPages * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(pipe(to_), 0);
    EXPECT_EQ(pipe(from_), 0);
    pid_ = fork();
    if (pid_ == 0) run();
    wait_for_child();
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    munmap(memory_, kPages * kPageBytes);
    for (int fd : {to_[0], to_[1], from_[0], from_[1]}) close(fd);
  }
  pid_t pid() const { return pid_; }
  uint64_t address() const { return reinterpret_cast<uint64_t>(memory_); }
  // Writes a byte of the page, or (from kPages on) gives page n - kPages back to the system.
  void change(uint64_t n) {
    EXPECT_EQ(write(to_[1], &n, sizeof n), static_cast<ssize_t>(sizeof n));
    wait_for_child();
  }

 private:
  void wait_for_child() {
    char c;
    EXPECT_EQ(read(from_[0], &c, 1), 1);
  }
  [[noreturn]] void run() {
    for (uint64_t i = 0; i < kPages; ++i)
      std::memset(memory_ + i * kPageBytes, static_cast<int>(i % 251) + 1, kPageBytes);
    uint64_t n;
    do {
      (void)!write(from_[1], "r", 1);
      if (read(to_[0], &n, sizeof n) != sizeof n) _exit(1);
      if (n < kPages)
        ++memory_[n * kPageBytes + 100];
      else
        munmap(memory_ + (n - kPages) * kPageBytes, kPageBytes);
    } while (true);
  }
  char* memory_ = nullptr;
  int to_[2], from_[2];
  pid_t pid_ = 0;
};

TEST(LiveImage, ReadsWhatTheProcessHasNow) {
  Child child;
  const pid_t pid = child.pid();
  const auto image = attach(std::span(&pid, 1));
  ASSERT_TRUE(image->is_live());
  const uint64_t first = image->layout().find(0, child.address());
  ASSERT_NE(first, ImageLayout::kNoPage);
  const PageBuffer buffer(Child::kPages);
  const auto byte = [&](uint64_t i) { return static_cast<int>(buffer.data()[i * kPageBytes + 100]); };
  EXPECT_EQ(image->read(first, Child::kPages, buffer.data()), buffer.data());
  for (uint64_t i = 0; i < Child::kPages; ++i) ASSERT_EQ(byte(i), static_cast<int>(i % 251) + 1) << i;

  child.change(7);
  child.change(Child::kPages + 20);  // unmapped: reads as zeros, and its neighbours as ever
  child.change(Child::kPages + 21);
  (void)image->read(first, Child::kPages, buffer.data());
  for (uint64_t i = 0; i < Child::kPages; ++i)
    ASSERT_EQ(byte(i), i == 20 || i == 21 ? 0 : static_cast<int>(i % 251) + (i == 7 ? 2 : 1)) << i;

  const uint64_t scattered[] = {first, first + 7, first + 20, first + 22, first + 299};
  image->gather(scattered, buffer.data());
  EXPECT_EQ(byte(0), 1);
  EXPECT_EQ(byte(1), 9);
  EXPECT_EQ(byte(2), 0);
  EXPECT_EQ(byte(3), 23);
  EXPECT_EQ(byte(4), 299 % 251 + 1);

  const auto copy = image->copy();
  EXPECT_FALSE(copy->is_live());
  EXPECT_EQ(static_cast<int>(copy->page(first + 7)[100]), 9);
  EXPECT_EQ(copy->read(first + 7, 1, buffer.data()), copy->page(first + 7));
}

TEST(LiveImage, TellsWhetherBytesAreThoseThatWereEncoded) {
  Child child;
  const pid_t pid = child.pid();
  const auto image = attach(std::span(&pid, 1));
  const PageBuffer buffer(1);
  const uint64_t page = image->layout().find(0, child.address());
  (void)image->read(page, 1, buffer.data());
  EXPECT_FALSE(image->is_encoded(page, buffer.data()));  // nothing was
  image->note_encoded(page, buffer.data());
  EXPECT_TRUE(image->is_encoded(page, buffer.data()));
  child.change(0);
  (void)image->read(page, 1, buffer.data());
  EXPECT_FALSE(image->is_encoded(page, buffer.data()));
}

TEST(LiveImage, AProcessThatHasExitedIsProcessGone) {
  auto child = std::make_unique<Child>();
  const pid_t pid = child->pid();
  const auto image = attach(std::span(&pid, 1));
  child.reset();
  const PageBuffer buffer(1);
  try {
    (void)image->read(0, 1, buffer.data());
    FAIL() << "read of a process that is gone";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Code::process_gone) << e.what();
  }
}

}  // namespace
}  // namespace medes
