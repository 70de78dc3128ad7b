// Memory of ours in a sandbox's process: the frames and buffers of injected calls, and times that calls wait
// for. Nothing of the program's lies there, so no stack of its need be guessed dead.
//
//   0      header (32 B), noted place (16 B); from 64 on slots of 48 B
//   4096   scratch
//   8192   frames, below the end
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "live/tracee.h"

namespace medes {

class InjectionArea {
 public:
  static constexpr size_t kSlotBytes = 48, kSlots = 84;

  // The area that the process has: made by us, by an agent before us, or its parent's when it was forked.
  // Nothing when it has none (any more).
  static std::optional<InjectionArea> find(pid_t pid);

  AddressRange range() const { return {begin_, begin_ + bytes_}; }
  FramePlace place() const { return {begin_ + 2 * kPageBytes, begin_ + bytes_, begin_ + kPageBytes}; }
  // Memory that pages are moved onto (live/move_out.h), from when it is mapped until it is about to be
  // unmapped: what is noted when an op begins was left by one that could not end.
  void note_place(pid_t pid, AddressRange place) const;
  AddressRange noted_place(pid_t pid) const;
  uint64_t slot(size_t index) const { return begin_ + 64 + index * kSlotBytes; }

 private:
  friend std::unique_ptr<Injector> inject(const Tracee& thread, const Gadgets& gadgets,
                                          std::span<const Vma> vmas, TimePoint deadline);
  InjectionArea(uint64_t begin, uint64_t bytes) : begin_(begin), bytes_(bytes) {}
  static bool is_at(pid_t pid, uint64_t begin, uint64_t bytes);
  uint64_t begin_, bytes_;
};
static_assert(64 + InjectionArea::kSlots * InjectionArea::kSlotBytes <= kPageBytes);

// An injector that uses the process's area, which is made if need be: a mapping more that `vmas` does not
// have then. The first call of all runs from memory that was never touched and is given back at once. Throws
// what Injector does, limit_exceeded when there is no memory for the area, and busy while the thread is on
// its way back from a call that an injector before had to leave (a freezer of cgroup v1, the death of an
// agent).
std::unique_ptr<Injector> inject(const Tracee& thread, const Gadgets& gadgets, std::span<const Vma> vmas,
                                 TimePoint deadline);

}  // namespace medes
