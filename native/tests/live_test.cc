#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <map>
#include <random>

#include "common/error.h"
#include "process/fault_server.h"
#include "restore/working_set.h"
#include "serving/mapping_change.h"
#include "serving/segments.h"
#include "tracing/call_arguments.h"
#include "tracing/signal_frame.h"

namespace medes {
namespace {

TEST(Segments, FindsOriginsAndPlaces) {
  Segments s;
  s.add(0x10000, 0x20000, 0x10000);
  s.add(0x40000, 0x50000, 0x40000);
  EXPECT_EQ(s.origin_of(0x12345), 0x12345u);
  EXPECT_FALSE(s.origin_of(0x20000));
  EXPECT_EQ(s.place_of(0x1f000).address, 0x1f000u);
  EXPECT_EQ(s.place_of(0x1f000).bytes, 0x1000u);
  EXPECT_EQ(s.place_of(0x30000).bytes, 0u);
  EXPECT_EQ(s.first_in(0x1f000, 0x41000), 0x1f000u);
  EXPECT_EQ(s.first_in(0x20000, 0x41000), 0x40000u);
  EXPECT_FALSE(s.first_in(0x20000, 0x40000));
}

TEST(SignalFrame, AnyResultOfACallIsBroughtBack) {
  const std::vector<std::byte> xstate(576);
  for (const uint64_t result : {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{0}, static_cast<uint64_t>(-512)}) {
    user_regs_struct registers{};
    registers.orig_rax = 232, registers.rax = result, registers.rip = 0x5000;
    const SignalFrame frame = make_signal_frame(0x7f0000010000, 0x1000, registers, 0, xstate);
    const bool again = result == static_cast<uint64_t>(-512);
    uint64_t rax = 0, rip = 0;
    constexpr size_t kContextAt = 48;  // behind the return address and the ucontext's head
    std::memcpy(&rax, frame.bytes.data() + kContextAt + 13 * 8, sizeof rax);
    std::memcpy(&rip, frame.bytes.data() + kContextAt + 16 * 8, sizeof rip);
    EXPECT_EQ(rax, again ? 232 : result);
    EXPECT_EQ(rip, again ? 0x4ffeu : 0x5000u);
  }
}

TEST(CallArguments, RangesOfAnyAddressLieInMemory) {
  for (const uint64_t at : {uint64_t{0}, uint64_t{1}, uint64_t{0x5010}, ~uint64_t{0} - 4096, ~uint64_t{0}}) {
    const AddressRange r = pages_around(at, 64, 64);
    EXPECT_LE(r.begin, r.end) << at;
    EXPECT_EQ(r.begin % kPageBytes + r.end % kPageBytes, 0u);
  }
  EXPECT_EQ(pages_around(0x5010, 64, 64).begin, 0x4000u);
  EXPECT_EQ(pages_around(0x5010, 64, 64).end, 0x6000u);
}

TEST(CallArguments, WhatIsLeftOfATimeIsATime) {
  constexpr int64_t kMicros = 1'000'000, kNanos = 1'000'000'000, kMost = INT64_MAX;
  EXPECT_EQ(time_left({3, 500'000}, kMicros, 1'000'000'000), (std::array<int64_t, 2>{2, 500'000}));
  EXPECT_EQ(time_left({3, 5}, kNanos, kMost), (std::array<int64_t, 2>{0, 0}));
  EXPECT_EQ(time_left({3, 5}, kNanos, -7), (std::array<int64_t, 2>{3, 5}));
  EXPECT_TRUE(time_left({kMost, kNanos - 1}, kNanos, 1));
  for (const auto& given :
       {std::array<int64_t, 2>{-1, 0}, {0, -1}, {0, kMost}, {INT64_MIN, INT64_MIN}, {1, kMicros}})
    EXPECT_FALSE(time_left(given, kMicros, 5));
}

TEST(Segments, EmptyOnesAreNone) {
  Segments s;
  s.add(0x10000, 0x20000, 0x10000);
  s.add(0x10000, 0x10000, 0x50000);
  s.put(0x12000, 0x18000, 0);
  s.add(0x10000, 0x20000, 0x10000);
  ASSERT_EQ(s.all().size(), 1u);
  EXPECT_EQ(s.origin_of(0x18000), 0x18000u);
}

MappingChange moved(uint64_t from, uint64_t to, uint64_t length) {
  return {MappingChange::Kind::move, from, from + length, to};
}
MappingChange unmapped(uint64_t begin, uint64_t end) { return {MappingChange::Kind::unmap, begin, end, 0}; }
MappingChange discarded(uint64_t begin, uint64_t end) {
  return {MappingChange::Kind::discard, begin, end, 0};
}

std::vector<AddressRange> apply(Segments& s, std::vector<MappingChange> changes) {
  return apply_together(s, changes).unwanted;
}

TEST(Segments, AMoveTakesTheOriginAlong) {
  Segments s;
  s.add(0x10000, 0x20000, 0x10000);
  apply(s, {moved(0x14000, 0x80000, 0x4000)});
  EXPECT_TRUE(s.moved());
  EXPECT_EQ(s.origin_of(0x81000), 0x15000u);
  EXPECT_FALSE(s.origin_of(0x15000));
  EXPECT_EQ(s.place_of(0x15000).address, 0x81000u);
  EXPECT_EQ(s.place_of(0x13000).bytes, 0x1000u);
  apply(s, {moved(0x80000, 0x14000, 0x4000)});  // and back again
  EXPECT_EQ(s.place_of(0x15000).address, 0x15000u);
}

TEST(Segments, PutOverridesWhateverWasThere) {
  Segments s;
  for (uint64_t a = 0x10000; a <= 0x30000; a += 0x10000) s.add(a, a + 0x8000, a);
  s.put(0x10000, 0x20000, 0x8000);  // a went where b was,
  s.put(0x30000, 0x10000, 0x4000);  // the first half of c where a was
  EXPECT_EQ(s.origin_of(0x21000), 0x11000u);
  EXPECT_EQ(s.origin_of(0x11000), 0x31000u);
  EXPECT_EQ(s.place_of(0x21000).bytes, 0u);
  EXPECT_FALSE(s.origin_of(0x31000));
  EXPECT_EQ(s.origin_of(0x35000), 0x35000u);
  EXPECT_FALSE(s.origin_of(0x15000));
}

// Against the plainest model there is: a map from page to origin.
TEST(Segments, RandomOperationsAgreeWithAModel) {
  std::mt19937_64 random(20240607);
  for (int round = 0; round < 200; ++round) {
    Segments s;
    std::map<uint64_t, uint64_t> model;
    s.add(0, 64 * kPageBytes, 0);
    for (uint64_t p = 0; p < 64; ++p) model[p] = p;
    for (int step = 0; step < 30; ++step) {
      const uint64_t a = random() % 128, n = 1 + random() % 16;
      if (random() % 2) {
        s.remove(a * kPageBytes, (a + n) * kPageBytes);
        for (uint64_t p = a; p < a + n; ++p) model.erase(p);
        continue;
      }
      const uint64_t to = (a + n + random() % 32) % 128;
      if (to < a + n && a < to + n) continue;  // mremap refuses overlapping places
      apply(s, {moved(a * kPageBytes, to * kPageBytes, n * kPageBytes)});
      std::map<uint64_t, uint64_t> moving;
      for (uint64_t p = a; p < a + n; ++p)
        if (model.contains(p)) moving[to + p - a] = model[p];
      for (uint64_t p = 0; p < n; ++p) model.erase(a + p), model.erase(to + p);
      model.insert(moving.begin(), moving.end());
    }
    for (uint64_t p = 0; p < 192; ++p) {
      const auto origin = s.origin_of(p * kPageBytes);
      ASSERT_EQ(origin.has_value(), model.contains(p)) << "round " << round << " page " << p;
      if (origin) {
        ASSERT_EQ(*origin, model[p] * kPageBytes);
        ASSERT_EQ(s.place_of(*origin).address, p * kPageBytes);
      }
    }
  }
}

bool same_range(const AddressRange& r, uint64_t begin, uint64_t end) {
  return r.begin == begin && r.end == end;
}

TEST(MappingChanges, ASetIsTheSameInAnyOrder) {
  // One thread unmaps b, a second moves a there, a third moves c to where a was and gives back part of d.
  // The kernel reports the old place of a move as unmapped, too.
  std::vector<MappingChange> set = {unmapped(0x20000, 0x28000), moved(0x10000, 0x20000, 0x8000),
                                    unmapped(0x10000, 0x18000), moved(0x30000, 0x10000, 0x8000),
                                    unmapped(0x30000, 0x38000), discarded(0x42000, 0x44000)};
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    Segments s;
    for (uint64_t a = 0x10000; a <= 0x40000; a += 0x10000) s.add(a, a + 0x8000, a);
    const auto gone = apply(s, set);
    EXPECT_EQ(s.origin_of(0x21000), 0x11000u);
    EXPECT_EQ(s.origin_of(0x11000), 0x31000u);
    EXPECT_FALSE(s.origin_of(0x30000));
    EXPECT_EQ(s.origin_of(0x42000), 0x42000u);  // still registered, though its bytes are unwanted
    ASSERT_EQ(gone.size(), 2u);
    EXPECT_TRUE(
        std::any_of(gone.begin(), gone.end(), [](const auto& r) { return same_range(r, 0x20000, 0x28000); }));
    EXPECT_TRUE(
        std::any_of(gone.begin(), gone.end(), [](const auto& r) { return same_range(r, 0x42000, 0x44000); }));
    std::shuffle(set.begin(), set.end(), random);
  }
}

// A fork between any two of these calls: the child's page tables tell which of them it was born with.
TEST(MappingChanges, AChildIsBornWithWhatWasDoneBefore) {
  const std::vector<std::vector<MappingChange>> calls = {
      {unmapped(0x20000, 0x28000)},
      {moved(0x10000, 0x20000, 0x8000), unmapped(0x10000, 0x18000)},
      {moved(0x30000, 0x10000, 0x8000), unmapped(0x30000, 0x38000)},
      {moved(0x40000, 0x30000, 0x8000), unmapped(0x40000, 0x48000)}};
  std::mt19937 random(11);
  for (size_t done = 0; done <= calls.size(); ++done) {
    Segments before;
    for (uint64_t a = 0x10000; a <= 0x40000; a += 0x10000) before.add(a, a + 0x8000, a);
    Segments child = before;
    std::vector<MappingChange> set;
    for (size_t i = 0; i < calls.size(); ++i) {
      if (i < done) (void)apply_together(child, calls[i]);
      set.insert(set.end(), calls[i].begin(), calls[i].end());
    }
    for (int round = 0; round < 20; ++round) {
      std::shuffle(set.begin(), set.end(), random);
      Segments found = before;
      (void)apply_together(
          found, inherited(before, set, [&](uint64_t a) { return child.origin_of(a).has_value(); }));
      for (uint64_t a = 0x10000; a < 0x50000; a += kPageBytes)
        ASSERT_EQ(found.origin_of(a), child.origin_of(a)) << "done " << done << " address " << std::hex << a;
    }
  }
}

// Each move goes to where the next one was, and only of the first do the page tables tell.
TEST(MappingChanges, AsManyInARowAsThereAreThreads) {
  constexpr uint64_t kChanges = 2000;
  const auto address = [](uint64_t i) { return (i + 1) * 0x10000; };
  Segments before;
  std::vector<MappingChange> set;
  for (uint64_t i = kChanges; i > 0; --i) {
    before.add(address(i), address(i) + 0x8000, address(i));
    set.push_back(moved(address(i), address(i + 1), 0x8000));
  }
  const auto found = inherited(before, set, [&](uint64_t a) { return a != address(1); });
  EXPECT_EQ(found.size(), kChanges);
  EXPECT_TRUE(inherited(before, set, [](uint64_t) { return true; }).empty());
}

user_regs_struct registers(long orig_rax, long rax) {
  user_regs_struct r{};
  r.orig_rax = static_cast<unsigned long long>(orig_rax);
  r.rax = static_cast<unsigned long long>(rax);
  r.rip = 0x5000;
  r.rsp = 0x7fff0000;
  r.rbx = 42;
  return r;
}

uint64_t word_at(const SignalFrame& f, size_t offset) {
  uint64_t v = 0;
  std::memcpy(&v, f.bytes.data() + offset, sizeof v);
  return v;
}

// Offsets of the kernel's rt_sigframe: return address, then uc_flags, uc_link, uc_stack (24), then
// sigcontext.
constexpr size_t kContextAt = 8 + 8 + 8 + 24, kRbx = kContextAt + 11 * 8, kRax = kContextAt + 13 * 8,
                 kRsp = kContextAt + 15 * 8, kRip = kContextAt + 16 * 8, kMask = kContextAt + 256;

TEST(SignalFrame, HoldsRegistersMaskAndReturnAddress) {
  const std::vector<std::byte> xstate(832);
  const auto frame = make_signal_frame(0x7ffe0000, 0xabcdef, registers(-1, 7), 0x1234, xstate);
  EXPECT_EQ(frame.address + frame.bytes.size(), 0x7ffe0000u);
  EXPECT_LE(frame.bytes.size(), signal_frame_bytes(xstate.size()));
  EXPECT_EQ((frame.address + 8) % 16, 0u);
  EXPECT_EQ(word_at(frame, 0), 0xabcdefu);
  EXPECT_EQ(word_at(frame, kRbx), 42u);
  EXPECT_EQ(word_at(frame, kRax), 7u);
  EXPECT_EQ(word_at(frame, kRsp), 0x7fff0000u);
  EXPECT_EQ(word_at(frame, kRip), 0x5000u);
  EXPECT_EQ(word_at(frame, kMask), 0x1234u);
}

TEST(SignalFrame, InterruptedCallsBeginAnew) {
  const std::vector<std::byte> xstate(832);
  for (long code : {512, 513, 514}) {
    const auto frame = make_signal_frame(0x7ffe0000, 1, registers(202, -code), 0, xstate);
    EXPECT_EQ(word_at(frame, kRip), 0x4ffeu);
    EXPECT_EQ(word_at(frame, kRax), 202u);
  }
  const auto timed = make_signal_frame(0x7ffe0000, 1, registers(230, -516), 0, xstate);
  EXPECT_EQ(word_at(timed, kRip), 0x4ffeu);
  EXPECT_EQ(word_at(timed, kRax), 230u);
  const auto again = make_signal_frame(0x7ffe0000, 1, registers(219, -516), 0, xstate);  // restart_syscall
  EXPECT_EQ(word_at(again, kRip), 0x5000u);
  EXPECT_EQ(static_cast<long>(word_at(again, kRax)), -EINTR);
  const auto plain = make_signal_frame(0x7ffe0000, 1, registers(-1, -512), 0, xstate);
  EXPECT_EQ(word_at(plain, kRip), 0x5000u);  // not in a call: a register that happens to hold -512
}

ImageLayout layout_at(uint64_t slide) {
  ImageLayout layout;
  ProcessLayout p;
  auto add = [&](uint64_t begin, uint64_t pages, VmaKind kind, const char* path) {
    Vma v;
    v.begin = begin + slide, v.end = v.begin + pages * kPageBytes, v.kind = kind, v.path = path;
    v.prot = PROT_READ | PROT_WRITE;
    p.vmas.push_back(v);
  };
  add(0x100000, 8, VmaKind::heap, "[heap]");
  add(0x400000, 4, VmaKind::file_private, "/usr/lib/liba.so");
  add(0x404000, 4, VmaKind::anonymous, "");  // its .bss
  add(0x500000, 16, VmaKind::anonymous, "");
  add(0x600000, 16, VmaKind::anonymous, "");
  layout.processes.push_back(p);
  for (uint64_t address : {0x100000ull, 0x404000ull, 0x500000ull, 0x600000ull}) {
    layout.runs.push_back({0, address + slide, layout.page_count, 4});
    layout.page_count += 4;
  }
  return layout;
}

TEST(WorkingSet, IdentitiesSurviveASlide) {
  const ImageLayout before = layout_at(0), after = layout_at(0x7f0000000000);
  const RegionIndex first(before), second(after);
  std::vector<WorkingSetEntry> entries;
  const std::vector<uint64_t> pages = {13, 2, 5, 8, 2};
  for (uint64_t page : pages) entries.push_back(first.entry_of(page));
  EXPECT_EQ(second.pages_of(entries), (std::vector<uint64_t>{13, 2, 5, 8}));
}

// The first dedup of a sandbox makes its libraries' data anonymous memory, in more mappings than before.
TEST(WorkingSet, IdentitiesSurviveAnEviction) {
  ImageLayout before = layout_at(0), after = layout_at(0);
  Vma data = after.processes[0].vmas[1];
  data.begin += kPageBytes, data.kind = VmaKind::anonymous, data.path.clear();
  after.processes[0].vmas[1].end = data.begin;
  after.processes[0].vmas.insert(after.processes[0].vmas.begin() + 2, data);
  for (ImageLayout* layout : {&before, &after}) {
    for (auto& r : layout->runs) r.first_page += r.first_page < 4 ? 0 : 2;
    layout->runs.insert(layout->runs.begin() + 1, {0, 0x402000, 4, 2});
    layout->page_count += 2;
  }
  const RegionIndex first(before), second(after);
  for (uint64_t page = 0; page < before.page_count; ++page) {
    const WorkingSetEntry entry = first.entry_of(page);
    EXPECT_EQ(second.pages_of(std::span(&entry, 1)), (std::vector<uint64_t>{page}));
  }
}

TEST(WorkingSet, UnknownEntriesAreLeftOut) {
  const ImageLayout layout = layout_at(0);
  const RegionIndex index(layout);
  const WorkingSetEntry known = index.entry_of(0);
  const std::vector<WorkingSetEntry> entries = {
      {123, 0}, {known.region_key, 1u << 30}, {known.region_key, 7}, {known.region_key, 1}};
  EXPECT_EQ(index.pages_of(entries), (std::vector<uint64_t>{1}));  // page 7 of the heap is not in the image
}

TEST(WorkingSet, PackedFormIsChecked) {
  const std::vector<std::byte> odd(17);
  EXPECT_THROW(unpack_working_set(odd), Error);
  EXPECT_EQ(unpack_working_set({}).size(), 0u);
}

TEST(FaultServer, OpensAndClosesIdle) {
  FaultServer server(2);
  EXPECT_TRUE(server.take_events().empty());
  EXPECT_EQ(server.stats().sandboxes, 0u);
  server.close();
  server.close();
}

}  // namespace
}  // namespace medes
