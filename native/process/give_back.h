// Takes memory of a stopped process away, by calls injected into it: as much as goes, and says what stays.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "process/move_out.h"
#include "process/stopped_process.h"
#include "procfs/pagemap.h"
#include "serving/uffd.h"

namespace medes {

class GiveBack {
 public:
  // What is still there of ranges that were to go: it could not, and is the sandbox's own.
  using Stays = std::function<void(std::span<const PageSpan> there)>;

  // All outlive the object. `uffd_in_process`: the descriptor's number there. Nobody else reads its events.
  GiveBack(StoppedProcess& process, const Uffd& uffd, int uffd_in_process, std::vector<std::string>& notes,
           Stays stays = nullptr)
      : p_(process),
        uffd_(uffd),
        uffd_in_process_(uffd_in_process),
        notes_(notes),
        stays_(std::move(stays)) {}

  // Unmaps what an op that could not end has left. True when there was something.
  bool unmap_left() { return mover().unmap_left(p_.vmas); }

  // `ranges`: ascending. A process that is held up in the middle (a freezer, a processor limit) keeps what it
  // still has. Throws process_gone, and cancelled when it is left to the next agent.
  void run(std::span<const AddressRange> ranges);

 private:
  MoveOut mover();
  long call_and_drain(long number, std::span<const uint64_t> arguments);
  void discard(std::span<const AddressRange> ranges);
  size_t discard_together(std::span<const AddressRange> ranges);
  void discard_alone(const AddressRange& range);
  void move_out(std::span<const AddressRange> ranges);
  void keep(std::span<const AddressRange> ranges);

  StoppedProcess& p_;
  const Uffd& uffd_;
  const int uffd_in_process_;
  std::vector<std::string>& notes_;
  const Stays stays_;
  bool discards_together_ = true;
};

}  // namespace medes
