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

#include "image/foreign_memory.h"
#include "tracing/tracee.h"

namespace medes {

class InjectionArea {
 public:
  static constexpr size_t kSlotBytes = 48, kSlots = 84;

  // The area that the process has: made by us, by an agent before us, or its parent's when it was forked.
  // Nothing when it has none (any more).
  static std::optional<InjectionArea> find(pid_t pid);

  AddressRange range() const { return {begin_, begin_ + bytes_}; }
  FramePlace place() const { return {begin_ + 2 * kPageBytes, begin_ + bytes_, begin_ + kPageBytes}; }
  // Memory that pages are moved onto (process/move_out.h), from before it is mapped until it is unmapped:
  // what is there when an op begins was left by one that could not end.
  void note_place(pid_t pid, AddressRange place) const;
  AddressRange noted_place(pid_t pid) const;
  uint64_t slot(size_t index) const { return begin_ + 64 + index * kSlotBytes; }
  std::optional<size_t> slot_at(uint64_t address) const {
    const uint64_t index = (address - slot(0)) / kSlotBytes;  // an address below wraps to a large one
    return index < kSlots ? std::optional<size_t>(index) : std::nullopt;
  }

 private:
  friend std::unique_ptr<Injector> inject(const Tracee& thread, const Gadgets& gadgets,
                                          std::span<const Vma> vmas, std::optional<InjectionArea> area,
                                          TimePoint deadline, const std::atomic<bool>* abandoned);
  InjectionArea(uint64_t begin, uint64_t bytes) : begin_(begin), bytes_(bytes) {}
  static bool is_at(const ForeignMemory& memory, uint64_t begin, uint64_t bytes);
  uint64_t begin_, bytes_;
};
static_assert(64 + InjectionArea::kSlots * InjectionArea::kSlotBytes <= kPageBytes);

// An injector that uses the process's area: `area` is what was found of it, which takes a look at each small
// mapping and can be done before the stop, since nobody but us makes one. It is made if need be: a mapping
// more that `vmas` does not have then. The first call of all runs from memory that was never touched and is
// given back at once. Throws what Injector does, limit_exceeded when there is no memory for the area, and
// busy while the thread is on its way back from a call that an injector before had to leave (a freezer of
// cgroup v1, the death of an agent).
std::unique_ptr<Injector> inject(const Tracee& thread, const Gadgets& gadgets, std::span<const Vma> vmas,
                                 std::optional<InjectionArea> area, TimePoint deadline,
                                 const std::atomic<bool>* abandoned = nullptr);

}  // namespace medes
