#include <gtest/gtest.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "image/image.h"
#include "procfs/capture.h"
#include "procfs/pagemap.h"

namespace medes {
namespace {

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

// This thread without CAP_SYS_ADMIN, which shows page frames.
class WithoutFrames {
 public:
  WithoutFrames() {
    EXPECT_EQ(syscall(SYS_capget, &header_, data_), 0);
    const uint32_t effective = data_[0].effective;
    data_[0].effective &= ~(1u << CAP_SYS_ADMIN);
    EXPECT_EQ(syscall(SYS_capset, &header_, data_), 0);
    data_[0].effective = effective;
  }
  ~WithoutFrames() { EXPECT_EQ(syscall(SYS_capset, &header_, data_), 0); }

 private:
  __user_cap_header_struct header_{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data_[2]{};
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

TEST(ForkSharedUnseen, WithoutPageFramesAllThatIsSharedStaysOrGoes) {
  const Family family;
  const WithoutFrames less;
  const auto kept = attach(family.pids, 1), gone = attach(family.pids, 2);
  for (uint32_t i : {0, 1}) {
    EXPECT_EQ(family.in(*kept, i), Family::kRewritten) << i;
    EXPECT_EQ(family.in(*gone, i), Family::kPages) << i;
  }
  EXPECT_GE(kept->fork_shared().kept, 2 * (Family::kPages - Family::kRewritten));
  EXPECT_EQ(gone->fork_shared().kept, 0u);
}

TEST_F(ForkShared, WithoutARuleAllIsInTheImage) {
  const auto image = attach(family.pids);
  EXPECT_EQ(family.in(*image, 0), Family::kPages);
  EXPECT_EQ(family.in(*image, 1), Family::kPages);
}

}  // namespace
}  // namespace medes
