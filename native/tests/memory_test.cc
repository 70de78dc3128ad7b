#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "common/error.h"
#include "memory/capture.h"
#include "memory/image.h"
#include "memory/pagemap.h"
#include "memory/proc.h"
#include "memory/program_data.h"

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

TEST(Maps, UnderstandsKernelLines) {
  const auto vmas = parse_maps(
      "55d0a4e00000-55d0a4e21000 rw-p 00000000 00:00 0                          [heap]\n"
      "7f0000000000-7f0000001000 rw-s 00000000 00:01 1045 /memfd:a b (deleted)\n"
      "7f0000002000-7f0000003000 r--p 00001000 fe:10 99                         /usr/lib/x y.so\n"
      "7f0000004000-7f0000005000 rw-p 00000000 00:00 0 \n"
      "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n"
      "7ffc00030000-7ffc00032000 r-xp 00000000 00:00 0                          [vdso]\n");
  ASSERT_EQ(vmas.size(), 6u);
  EXPECT_EQ(vmas[0].kind, VmaKind::heap);
  EXPECT_EQ(vmas[1].kind, VmaKind::memfd);
  EXPECT_EQ(vmas[1].path, "/memfd:a b (deleted)");
  EXPECT_EQ(vmas[2].kind, VmaKind::file_private);
  EXPECT_EQ(vmas[2].offset, 0x1000u);
  EXPECT_EQ(vmas[3].kind, VmaKind::anonymous);
  EXPECT_EQ(vmas[4].kind, VmaKind::stack);
  EXPECT_EQ(vmas[5].kind, VmaKind::other);
}

TEST(Maps, RefusesNonsense) {
  for (const char* text : {"x", "10-5 rw-p 0 00:00 0 \n", "10-20 rw\n", "10-20 rw-p zz 00:00 0\n",
                           "20-30 rw-p 0 00:00 0 \n10-15 rw-p 0 00:00 0 \n"})
    EXPECT_THROW(parse_maps(text), Error) << text;
}

std::string stat_of(const std::string& name, uint64_t arguments_at) {
  std::string text = "7 (" + name + ") S -1 ";
  for (int field = 5; field < 48; ++field) text += std::to_string(field) + " ";
  for (int i = 0; i < 4; ++i) text += std::to_string(arguments_at + 16 * i) + " ";
  return text + "0\n";
}

TEST(ProcText, AStatIsUnderstoodWhateverItsName) {
  for (const char* name : {"x", "", ") R 9 9", "a b\n(", "1 2 3 4 5 6 7 8"}) {
    const ProcessStat stat = parse_stat(stat_of(name, 0x7ffc00000000), "pid 7");
    EXPECT_EQ(stat.state, 'S') << name;
    EXPECT_EQ(stat.parent, -1);
    EXPECT_EQ(stat.user_ticks, 14u);
    EXPECT_EQ(stat.start_time_ticks, 22u);
    EXPECT_EQ(stat.processor, 39);
    EXPECT_EQ(stat.arguments.end, 0x7ffc00000010u);
    EXPECT_EQ(stat.environment.begin, 0x7ffc00000020u);
  }
  const std::string whole = stat_of("x", 1);
  for (size_t n = 0; n < 40; ++n) EXPECT_THROW((void)parse_stat(whole.substr(0, n), "pid 7"), Error);
  EXPECT_THROW((void)parse_stat("7 (x) S 18446744073709551616 " + whole.substr(9), "pid 7"), Error);
}

TEST(ProcText, AThreadsNameIsNoneOfItsTimes) {
  const std::string rest = "\n-----\nse.exec_start   :   12.000345\nnr_voluntary_switches : 9\n";
  for (const char* name : {"cat (1, #threads: 1)", "se.exec_start:9.9", "nr_voluntary_switches : 5"}) {
    const SchedTimes times = parse_sched(name + rest);
    EXPECT_EQ(times.exec_start_ns, 12'000'345) << name;
    EXPECT_EQ(times.voluntary_switches, 9u);
  }
  EXPECT_FALSE(parse_sched("x\nse.exec_start : 9223372036854775807.999999\n").exec_start_ns);
  EXPECT_FALSE(parse_sched("").voluntary_switches);
}

TEST(ProcText, OnlyASleepingCallIsOne) {
  EXPECT_FALSE(parse_syscall("running\n"));
  EXPECT_FALSE(parse_syscall("-1 0x7ffc57efe688 0x7fbb701172ad\n"));
  EXPECT_FALSE(parse_syscall("232 0x1 0x2 0x3 0x4 0x5\n"));
  const auto call = parse_syscall("232 0x1 0x2 0x3 0x4 0x5 0x6 0xffffffffffffffff 0x8\n");
  ASSERT_TRUE(call);
  EXPECT_EQ(call->number, 232);
  EXPECT_EQ(call->arguments[5], 6u);
  EXPECT_EQ(call->stack_pointer, ~uint64_t{0});
}

TEST(ProcText, BuffersOfARingAreWholePagesOfMemory) {
  std::vector<AddressRange> out;
  append_registered_buffers(
      "SqMask:\t7\nUserBufs:\t4\n    0: 0x7f0000001234/4096\n    1: <none>\n"
      "    2: 0xfffffffffffffff0/4096\n    3: 0x1000/0\nPollList:\n    4: 0x1000/1\n",
      out);
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].begin, 0x7f0000001000u);
  EXPECT_EQ(out[0].end, 0x7f0000003000u);
  EXPECT_EQ(pending_of("pos:\t0\nino:\t3\npending:\t17\ntotal:\t9\n"), 17u);
  EXPECT_FALSE(pending_of("pos:\t0\npending:\tmany\n"));
}

TEST(ProcText, FlagsAreOfTheMappingAboveThem) {
  const auto locked = flagged_ranges(
      "1000-2000 rw-p 00000000 00:00 0 \nAnonymous:  4 kB\nVmFlags: rd wr lo\n"
      "2000-3000 rw-p 00000000 00:00 0 /a-b lo\nVmFlags: rd wr\n"
      "3000-5000 rw-p 00000000 00:00 0 /VmFlags: lo\nLocked: 8 kB\nVmFlags: lo rd\n",
      "lo");
  ASSERT_EQ(locked.size(), 2u);
  EXPECT_EQ(locked[0].begin, 0x1000u);
  EXPECT_EQ(locked[1].end, 0x5000u);
}

TEST(ProcText, GroupsAndTheirMounts) {
  const auto groups = parse_cgroups("9:name=systemd:/\n6:freezer,memory:/a:b\nbroken\n0::/c\n");
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[1].controllers, ",freezer,memory,");
  EXPECT_EQ(groups[1].path, "/a:b");
  EXPECT_TRUE(groups[2].unified && groups[2].controllers == ",,");
  const auto mounts = parse_cgroup_mounts(
      "36 35 0:30 / /sys/fs/cgroup rw,noatime shared:1 - cgroup2 none rw,nsdelegate\n"
      "37 35 0:31 /x /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
      "38 35 8:1 / /home rw - ext4 /dev/sda rw\n39 35\n");
  ASSERT_EQ(mounts.size(), 2u);
  EXPECT_TRUE(mounts[0].unified);
  EXPECT_EQ(mounts[1].root, "/x");
  EXPECT_EQ(mounts[1].controllers, ",rw,freezer,");
  EXPECT_EQ(memory_stat_field("inactive_file_x 1\ninactive_file 4096\n", "inactive_file"), 4096u);
  EXPECT_EQ(limit_of("max\n"), UINT64_MAX);
  std::vector<pid_t> pids;
  append_pids("5\n0\nx\n-3\n70\n", pids);
  EXPECT_EQ(pids, (std::vector<pid_t>{5, 70}));
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

// A process that fills pages, and its child, which shares them and rewrites the first few.
class Family {
 public:
  static constexpr uint64_t kPages = 64, kRewritten = 3;
  Family() {
    memory_ = static_cast<char*>(
        mmap(nullptr, kPages * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(pipe(ready_), 0);
    pids[0] = fork();
    if (pids[0] == 0) {
      std::memset(memory_, 1, kPages * kPageBytes);
      pid_t child = fork();
      if (child == 0) {
        for (uint64_t i = 0; i < kRewritten; ++i) memory_[i * kPageBytes] = 2;
        child = getpid();
        (void)!write(ready_[1], &child, sizeof child);
      }
      for (;;) pause();
    }
    EXPECT_EQ(read(ready_[0], &pids[1], sizeof pids[1]), static_cast<ssize_t>(sizeof pids[1]));
  }
  ~Family() {
    kill(pids[1], SIGKILL);
    kill(pids[0], SIGKILL);
    waitpid(pids[0], nullptr, 0);
    close(ready_[0]);
    close(ready_[1]);
    munmap(memory_, kPages * kPageBytes);
  }
  // How many of the pages of a process are in the image.
  uint64_t in(const MemoryImage& image, uint32_t process) const {
    uint64_t n = 0;
    for (uint64_t i = 0; i < kPages; ++i)
      n += image.layout().find(process, reinterpret_cast<uint64_t>(memory_) + i * kPageBytes) !=
           ImageLayout::kNoPage;
    return n;
  }
  pid_t pids[2]{};

 private:
  char* memory_ = nullptr;
  int ready_[2]{};
};

class ForkShared : public testing::Test {
 protected:
  void SetUp() override {
    uint64_t entry = 0;
    const UniqueFd map = open_pagemap(getpid());
    const auto at = static_cast<off_t>(reinterpret_cast<uintptr_t>(&entry) / kPageBytes * sizeof entry);
    ASSERT_EQ(pread(map.get(), &entry, sizeof entry, at), static_cast<ssize_t>(sizeof entry));
    if (PagemapEntry{entry}.frame() == 0) GTEST_SKIP() << "page frames are shown to CAP_SYS_ADMIN only";
  }
  Family family;
};

TEST_F(ForkShared, FewSharersAreCopied) {
  const auto image = attach(family.pids, 2);
  EXPECT_EQ(family.in(*image, 0), Family::kPages);
  EXPECT_EQ(family.in(*image, 1), Family::kPages);
  EXPECT_GE(image->fork_shared().copied, Family::kPages - Family::kRewritten);
  EXPECT_EQ(image->fork_shared().kept, 0u);
}

TEST_F(ForkShared, ManySharersKeepTheirPages) {
  const auto image = attach(family.pids, 1);
  EXPECT_EQ(family.in(*image, 0), Family::kRewritten);
  EXPECT_EQ(family.in(*image, 1), Family::kRewritten);
  EXPECT_GE(image->fork_shared().kept, Family::kPages - Family::kRewritten);
  EXPECT_EQ(image->fork_shared().copied, 0u);
}

TEST_F(ForkShared, WhatProcessesOutsideHaveTooStays) {
  for (uint32_t which : {0, 1}) {
    const auto image = attach(std::span(&family.pids[which], 1), 8);
    EXPECT_EQ(family.in(*image, 0), Family::kRewritten) << which;
    EXPECT_GE(image->fork_shared().outside, Family::kPages - Family::kRewritten) << which;
  }
}

TEST_F(ForkShared, WithoutARuleAllIsInTheImage) {
  const auto image = attach(family.pids);
  EXPECT_EQ(family.in(*image, 0), Family::kPages);
  EXPECT_EQ(family.in(*image, 1), Family::kPages);
}

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
