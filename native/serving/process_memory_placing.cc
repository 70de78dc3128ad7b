// Pages go back: placed where their addresses are now, or zeros where the kernel would have given them.
#include <sched.h>

#include <algorithm>
#include <ctime>
#include <mutex>

#include "common/fault_point.h"
#include "serving/process_memory.h"

namespace medes {
namespace {

constexpr size_t kPagesPerLook = 256;
// A program that takes new memory goes through it: the zero page costs none, and each fault of its own some
// 20 us.
constexpr uint64_t kZerosTogether = 64;
// The kernel has just tried to make room, and may be still at it. Who wants the page asks again later.
constexpr int kOutOfMemoryRetries = 4;
constexpr timespec kOutOfMemoryPause{0, 1'000'000};

}  // namespace

uint64_t ProcessMemory::missing_page_at(uint64_t address) {
  const std::shared_lock lock(mutex_);
  const uint64_t page = page_at(address);
  if (page == ImageLayout::kNoPage || state(page) != PageState::evicted) return ImageLayout::kNoPage;
  return page;
}

// Of those from `address` on, how many are the program's to have as zeros.
uint64_t ProcessMemory::fresh_pages(uint64_t address) {
  uint64_t count = 0;
  for (; count < kZerosTogether; ++count) {
    const uint64_t page = page_at(address + count * kPageBytes);
    if (page != ImageLayout::kNoPage && is_out(state(page))) break;
  }
  // Of a forked child it is not known where it has guards. The first page is none: it faulted.
  if (is_forked_child()) return std::min<uint64_t>(count, 1);
  return count > 1 ? 1 + unguarded(address + kPageBytes, count - 1) : count;
}

Code ProcessMemory::place_zeros(uint64_t address, uint64_t& placed) {
  address &= ~(kPageBytes - 1);
  placed = 0;
  for (int failures = 0;;) {
    UffdResult result;
    {
      const std::shared_lock lock(mutex_);
      if (!uffd_) return Code::ok;
      uint64_t count = fresh_pages(address);
      if (count == 0) return Code::busy;
      // A run must lie in one mapping; where that ends is nothing that events tell. Halves find it soon.
      do {
        result = uffd_.zero(address, count, placed);
      } while (result == UffdResult::unmapped && placed == 0 && (count /= 2) > 0);
    }
    if (placed > 0) return Code::ok;
    switch (result) {
      case UffdResult::ok: return Code::ok;
      case UffdResult::again:
        if (on_events_) on_events_();
        sched_yield();
        continue;
      case UffdResult::gone: gone_ = true; return Code::process_gone;
      case UffdResult::exists:
      case UffdResult::unmapped: wake(address); return Code::ok;
      case UffdResult::no_memory:
        if (++failures > kOutOfMemoryRetries) return Code::limit_exceeded;
        nanosleep(&kOutOfMemoryPause, nullptr);
        continue;
      case UffdResult::failed: return Code::io;
    }
  }
}

// How many pages from `address` on may be placed: up to the first guard. No event tells of
// MADV_GUARD_INSTALL, and the kernel would put a page in a guard's place. Of a forked child nobody knows the
// process.
uint64_t ProcessMemory::unguarded(uint64_t address, uint64_t count) {
  if (is_forked_child()) return count;
  try {
    std::call_once(look_at_pages_, [&] { pagemap_ = open_pagemap(pid_); });
    PagemapEntry entries[kPagesPerLook];
    for (uint64_t n = 0; n < count;) {
      const size_t got = read_pagemap(pagemap_.get(), pid_, address + n * kPageBytes,
                                      std::span(entries).first(std::min<uint64_t>(count - n, kPagesPerLook)));
      for (size_t i = 0; i < got; ++i)
        if (entries[i].guard()) return n + i;
      n += got;
    }
  } catch (const Error&) {  // it is gone, as placing finds out, or we have no descriptor left to look with
  }
  return count;
}

// Places as much as lies together and is still wanted, from `page` on; `done` gets how many pages are
// settled (in place, or not wanted any more). busy: events must be read first.
Code ProcessMemory::place_once(uint64_t page, uint64_t count, const std::byte* bytes, uint64_t& done) {
  const std::shared_lock lock(mutex_);
  done = 0;
  while (done < count && state(page + done) != PageState::evicted) ++done;
  if (done > 0) return Code::ok;
  if (!uffd_) return Code::process_gone;
  const PageRun& run = layout_.run_of(page);
  const auto where = segments_.place_of(run.address + (page - run.first_page) * kPageBytes);
  if (where.bytes == 0) {
    set_state(page, PageState::resident);
    done = 1;
    return Code::ok;
  }
  uint64_t together = std::min(count, where.bytes / kPageBytes);
  for (uint64_t i = 1; i < together; ++i)
    if (state(page + i) != PageState::evicted) together = i;
  together = unguarded(where.address, together);
  if (together == 0) {  // what was there is gone by the program's own wish
    set_state(page, PageState::resident);
    uffd_.wake(where.address, 1);
    done = 1;
    return Code::ok;
  }
  uint64_t placed = 0;
  UffdResult result = uffd_.copy(where.address, bytes, together, placed);
  if (result == UffdResult::unmapped && placed == 0 && together > 1)
    // A run must lie in one mapping, and mprotect cuts mappings without an event: page by page, then.
    result = uffd_.copy(where.address, bytes, 1, placed);
  for (uint64_t i = 0; i < placed; ++i) set_state(page + i, PageState::restored);
  done = placed;
  switch (result) {
    case UffdResult::ok: return Code::ok;
    case UffdResult::exists:
      set_state(page + placed, PageState::restored);
      uffd_.wake(where.address + placed * kPageBytes, 1);
      ++done;
      return Code::ok;
    case UffdResult::unmapped:
      // The kernel looks for the mapping before it looks whether mappings change: it may just have moved. No
      // event can have been read since we took the lock, so asking now tells the two apart.
      if (placed > 0) return Code::ok;  // what is left is looked at by itself
      if (uffd_.changing()) return Code::busy;
      set_state(page + placed, PageState::resident);
      uffd_.wake(where.address + placed * kPageBytes, 1);
      ++done;
      return Code::ok;
    case UffdResult::again: return Code::busy;
    case UffdResult::gone: gone_ = true; return Code::process_gone;
    case UffdResult::no_memory: return Code::limit_exceeded;
    case UffdResult::failed: return Code::io;
  }
  return Code::internal;
}

Code ProcessMemory::place(uint64_t first_page, uint64_t count, const std::byte* bytes) {
  int failures = 0;
  while (count > 0) {
    fault_point("restore.place");
    uint64_t done = 0;
    const Code code = place_once(first_page, count, bytes, done);
    first_page += done, count -= done, bytes += done * kPageBytes;
    if (code == Code::ok) continue;
    if (code == Code::busy) {
      if (on_events_) on_events_();
      sched_yield();
      continue;
    }
    if (code != Code::limit_exceeded || ++failures > kOutOfMemoryRetries) return code;
    nanosleep(&kOutOfMemoryPause, nullptr);  // the sandbox is at its memory limit: reclaim may help
  }
  return Code::ok;
}

}  // namespace medes
