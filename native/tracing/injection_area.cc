#include "tracing/injection_area.h"

#include <dirent.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string_view>

#include "common/error.h"
#include "common/fault_point.h"
#include "common/wiped.h"
#include "procfs/pagemap.h"
#include "procfs/proc.h"
#include "tracing/process_bytes.h"

namespace medes {
namespace {

constexpr uint64_t kMagic = 0x314145524153444dull;  // "MDSAREA1"
constexpr uint64_t kAreaBytesMin = 3 * kPageBytes, kAreaBytesMax = 32 * kPageBytes;
constexpr uint64_t kMostToLookThrough = 64u << 20;
constexpr uint64_t kLookBytes = 1u << 20;
constexpr size_t kMaxKnown = kMaxProcesses * 16;

struct Header {
  uint64_t magic, begin, bytes, inverse;  // itself included: not to be found where it was copied to
};
static_assert(sizeof(Header) == 32);

Header header_of(uint64_t begin, uint64_t bytes) { return {kMagic, begin, bytes, ~(begin ^ bytes)}; }

struct Known {
  uint64_t begin, bytes;
};
std::mutex g_mutex;
std::map<pid_t, Known> g_known;

void remember(pid_t pid, Known area) {
  const std::lock_guard lock(g_mutex);
  if (g_known.size() >= kMaxKnown) g_known.clear();
  g_known[pid] = area;
}

bool may_hold_frames(const Vma& v) {
  return is_anonymous(v) && (v.prot & (PROT_READ | PROT_WRITE)) == (PROT_READ | PROT_WRITE);
}

// The lowest `bytes` of [begin, end) that were never touched: nothing was ever written there. A mapping may
// be terabytes (a sanitizer's shadow): it is looked through in pieces, and not to its end.
uint64_t untouched(int pagemap, pid_t pid, uint64_t begin, uint64_t end, uint64_t bytes) {
  uint64_t found = 0, run = 0;
  const uint64_t most = std::min(end, begin + kMostToLookThrough);
  for (uint64_t at = begin; at < most && found == 0; at += kLookBytes)
    for_pagemap(pagemap, pid, at, std::min(most, at + kLookBytes),
                [&](uint64_t address, const PagemapEntry& e) {
                  run = e.bits == 0 || (!e.present() && !e.swapped() && !e.guard()) ? run + kPageBytes : 0;
                  if (run >= bytes && found == 0) found = address + kPageBytes - run;
                });
  return found;
}

// One that the program made: memory may be registered with it, and a write of ours would wait for the
// program.
bool has_userfaultfd(pid_t pid) {
  const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(folder.c_str()), closedir);
  if (!dir) return true;
  char target[64];
  while (const dirent* entry = readdir(dir.get())) {
    const ssize_t n = readlinkat(dirfd(dir.get()), entry->d_name, target, sizeof target);
    if (n > 0 &&
        std::string_view(target, static_cast<size_t>(n)).find("userfaultfd") != std::string_view::npos)
      return true;
  }
  return false;
}

// The lowest whole pages of a stack that hold zeros and nothing else: where all of it is locked, none is
// untouched.
uint64_t all_zeros(pid_t pid, uint64_t begin, uint64_t end, uint64_t bytes) {
  const WipedBytes zeros(kPageBytes);
  WipedBytes page(kPageBytes);
  uint64_t run = 0;
  for (uint64_t at = begin; at < std::min(end, begin + kMostToLookThrough); at += kPageBytes) {
    run = read_memory(pid, at, page.data(), kPageBytes) && page == zeros ? run + kPageBytes : 0;
    if (run >= bytes) return at + kPageBytes - run;
  }
  return 0;
}

// Where the first frame can go that is nobody's live data: stack that was never reached, else any memory that
// was never touched, else what reads like it.
FramePlace first_place(const Tracee& thread, std::span<const Vma> vmas, uint64_t bytes) {
  const UniqueFd pagemap = open_pagemap(thread.pid);
  const auto place = [&](uint64_t begin) { return FramePlace{begin, begin + bytes, 0}; };
  const auto search = [&](const Vma& v) {
    return untouched(pagemap.get(), thread.pid, v.begin, v.end, bytes);
  };
  for (const auto& v : vmas)
    if (v.kind == VmaKind::stack && may_hold_frames(v))
      if (const uint64_t at = search(v); at != 0) return place(at);
  if (!has_userfaultfd(thread.pid))
    for (const auto& v : vmas)
      if (v.kind != VmaKind::stack && may_hold_frames(v))
        if (const uint64_t at = search(v); at != 0) return place(at);
  for (const auto& v : vmas)
    if (v.kind == VmaKind::stack && may_hold_frames(v))
      if (const uint64_t at = all_zeros(thread.pid, v.begin, v.end, bytes); at != 0) return place(at);
  throw Error(Code::busy, "it has no untouched memory to begin injected calls in",
              "pid " + std::to_string(thread.pid), "try again later");
}

}  // namespace

bool InjectionArea::is_at(const ForeignMemory& memory, uint64_t begin, uint64_t bytes) {
  Header header{};
  const Header expected = header_of(begin, bytes);
  return memory.read(begin, &header, sizeof header) == sizeof header && header.magic == expected.magic &&
         header.begin == expected.begin && header.bytes == expected.bytes &&
         header.inverse == expected.inverse;
}

std::optional<InjectionArea> InjectionArea::find(pid_t pid) {
  std::optional<Known> known;
  {
    const std::lock_guard lock(g_mutex);
    if (const auto it = g_known.find(pid); it != g_known.end()) known = it->second;
  }
  const ForeignMemory memory(pid);
  if (known && is_at(memory, known->begin, known->bytes)) return InjectionArea(known->begin, known->bytes);
  for (const auto& v : read_maps(pid)) {
    const uint64_t bytes = v.end - v.begin;
    if (v.kind != VmaKind::anonymous || bytes < kAreaBytesMin || bytes > kAreaBytesMax) continue;
    if (!may_hold_frames(v) || !is_at(memory, v.begin, bytes)) continue;
    remember(pid, {v.begin, bytes});
    return InjectionArea(v.begin, bytes);
  }
  return std::nullopt;
}

void InjectionArea::note_place(pid_t pid, AddressRange place) const {
  const uint64_t note[] = {place.begin, place.end};
  (void)write_memory(pid, begin_ + sizeof(Header), note, sizeof note);
}

AddressRange InjectionArea::noted_place(pid_t pid) const {
  uint64_t note[2] = {};
  if (!read_memory(pid, begin_ + sizeof(Header), note, sizeof note)) return {};
  return {note[0], note[1]};
}

std::unique_ptr<Injector> inject(const Tracee& thread, const Gadgets& gadgets, std::span<const Vma> vmas,
                                 std::optional<InjectionArea> area, TimePoint deadline,
                                 const std::atomic<bool>* abandoned) {
  const uint64_t frame_bytes = (Injector::frame_bytes(thread) + kPageBytes - 1) & ~(kPageBytes - 1);
  if (area && !InjectionArea::is_at(ForeignMemory(thread.pid), area->begin_, area->bytes_)) area.reset();
  // A frame over the one that it has still to come back through would send it round for ever.
  if (area && area->range().contains(registers_of(thread).rsp))
    throw Error(Code::busy, "a call that was injected before is not over",
                "pid " + std::to_string(thread.pid), "try again later");
  if (area && area->bytes_ >= 2 * kPageBytes + frame_bytes)
    return std::make_unique<Injector>(thread, gadgets, area->place(), deadline, abandoned);
  const FramePlace first = first_place(thread, vmas, frame_bytes);
  auto injector = std::make_unique<Injector>(thread, gadgets, first, deadline, abandoned);
  const uint64_t bytes = 2 * kPageBytes + frame_bytes;
  const uint64_t map[] = {
      0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, static_cast<uint64_t>(-1), 0};
  const long begin = injector->call(SYS_mmap, map);
  const std::vector<std::byte> zeros(bytes);
  if (begin < 0) {
    injector->finish();
    (void)write_memory(thread.pid, first.bottom, zeros.data(), frame_bytes);
    throw Error(Code::limit_exceeded, "no memory for injected calls in it",
                "pid " + std::to_string(thread.pid), "raise its memory limit");
  }
  fault_point("area.mapped");
  area = InjectionArea(static_cast<uint64_t>(begin), bytes);
  // All of it there from now on: a write of ours must never wait for a page.
  const Header header = header_of(area->begin_, bytes);
  if (!write_memory(thread.pid, area->begin_, zeros.data(), bytes) ||
      !write_memory(thread.pid, area->begin_, &header, sizeof header))
    throw Error(Code::busy, "memory for injected calls cannot be written",
                "pid " + std::to_string(thread.pid), "try again later");
  injector->move_to(area->place());
  // Its own mapping, and none that a core dump need hold.
  const uint64_t own[] = {area->begin_, bytes, MADV_DONTDUMP};
  (void)injector->call(SYS_madvise, own);
  fault_point("area.own");
  // The first place reads as zeros again, and costs nothing where that can be had.
  (void)write_memory(thread.pid, first.bottom, zeros.data(), frame_bytes);
  const uint64_t back[] = {first.bottom, frame_bytes, MADV_DONTNEED};
  (void)injector->call(SYS_madvise, back);
  fault_point("area.ready");
  remember(thread.pid, {area->begin_, bytes});
  return injector;
}

}  // namespace medes
