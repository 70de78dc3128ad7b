// What was in memory of ours is not there for whoever gets it next.
#include "common/wiped.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "common/unique_fd.h"
#include "image/image.h"

namespace medes {
namespace {

constexpr auto kMark = std::byte{0xc5};

// Of memory that may have been freed, as the kernel has it: no sanitizer looks.
std::vector<std::byte> look(uintptr_t address, size_t bytes) {
  const UniqueFd memory(open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> out(bytes);
  EXPECT_EQ(pread(memory.get(), out.data(), bytes, static_cast<off_t>(address)), static_cast<ssize_t>(bytes));
  return out;
}

long marks_in(const std::vector<std::byte>& bytes) { return std::count(bytes.begin(), bytes.end(), kMark); }

TEST(Wiped, VectorsWipeWhatTheyFreeAndWhatTheyGrowOutOf) {
  constexpr size_t kBytes = 4096;
  uintptr_t grown_out_of = 0, freed = 0;
  {
    WipedBytes bytes(kBytes, kMark);
    grown_out_of = reinterpret_cast<uintptr_t>(bytes.data());
    ASSERT_EQ(marks_in(look(grown_out_of, kBytes)), static_cast<long>(kBytes));
    bytes.resize(2 * kBytes, kMark);
    freed = reinterpret_cast<uintptr_t>(bytes.data());
    ASSERT_NE(freed, grown_out_of);
    bytes.resize(10);  // what is behind the end goes as well
  }
  EXPECT_EQ(marks_in(look(grown_out_of, kBytes)), 0);
  EXPECT_EQ(marks_in(look(freed, 2 * kBytes)), 0);
}

TEST(Wiped, RoomKeepsWhatItIsToldToAndWipesTheRest) {
  constexpr size_t kBytes = 4096;
  uintptr_t grown_out_of = 0, freed = 0;
  {
    WipedRoom room;
    EXPECT_EQ(room.size(), 0U);
    room.grow(kBytes);
    std::memset(room.data(), static_cast<int>(kMark), kBytes);
    grown_out_of = reinterpret_cast<uintptr_t>(room.data());
    room.grow(kBytes / 2);  // there is as much
    ASSERT_EQ(reinterpret_cast<uintptr_t>(room.data()), grown_out_of);
    room.grow(2 * kBytes, 100);
    freed = reinterpret_cast<uintptr_t>(room.data());
    ASSERT_NE(freed, grown_out_of);
    ASSERT_GE(room.size(), 2 * kBytes);
    EXPECT_GE(marks_in(look(freed, 100)), 100);
    std::memset(room.data(), static_cast<int>(kMark), room.size());
  }
  EXPECT_EQ(marks_in(look(grown_out_of, kBytes)), 0);
  EXPECT_EQ(marks_in(look(freed, 2 * kBytes)), 0);
}

[[gnu::noinline]] uintptr_t mark_the_stack() {
  volatile std::byte local[32 * 1024];
  for (auto& b : local) b = kMark;
  return reinterpret_cast<uintptr_t>(&local[0]);
}

TEST(Wiped, TheStackBelowIsZeroAfterWork) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "keeps locals elsewhere";
#endif
  uintptr_t at = 0;
  {
    const WorkScope scope;
    at = mark_the_stack();
  }
  EXPECT_LT(marks_in(look(at, 32 * 1024)), 64);  // `look` has used some of it since
}

struct Noted {
  int wiped = 0;
  void wipe() { ++wiped; }
};

TEST(Wiped, WhatAThreadKeepsIsWipedWhenWorkThatUsedItEnds) {
  std::thread([] {
    ThreadScratch<Noted> kept;
    {
      const WorkScope scope;
    }
    Noted* noted = nullptr;
    {
      const WorkScope scope;
      noted = &kept.use();
      kept.use();
      EXPECT_EQ(noted->wiped, 0);
    }
    EXPECT_EQ(noted->wiped, 1);
    WorkScope::end();
    EXPECT_EQ(noted->wiped, 1) << "not used since";
  }).join();
}

TEST(Wiped, PageBuffersAreZeroAfterWork) {
  std::thread([] {
    ThreadScratch<PageBuffer> kept(3);
    const std::byte* bytes = nullptr;
    {
      const WorkScope scope;
      const PageBuffer& buffer = kept.use();
      bytes = buffer.data();
      std::fill_n(buffer.data(), 3 * kPageBytes, kMark);
    }
    EXPECT_TRUE(std::all_of(bytes, bytes + 3 * kPageBytes, [](std::byte b) { return b == std::byte{0}; }));
  }).join();
}

}  // namespace
}  // namespace medes
