// One process of a sandbox that stands still while memory of its goes: what of that must stay, and the thread
// that calls are made in.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "image/image.h"
#include "serving/uffd.h"
#include "store/sandbox_file.h"
#include "tracing/injection_area.h"
#include "tracing/tracee.h"

namespace medes {

struct StoppedProcess {
  uint32_t index = 0;  // in the layout
  pid_t pid = 0;
  Gadgets gadgets;
  std::optional<InjectionArea> area;   // as of before the stop
  std::vector<Vma> vmas;               // as of the stop
  std::vector<AddressRange> keep;      // must stay, ascending; they may overlap
  std::string may_pin;                 // what may hold on to more than that; empty: nothing
  std::unique_ptr<Injector> injector;  // while stopped
  std::vector<uint64_t> faults;        // of others, read before anybody served: yet to be answered

  std::string object() const { return "pid " + std::to_string(pid); }

  // All that can be found out while it still runs. Throws invalid_argument for an image of no process,
  // process_gone, busy for one that a cgroup has frozen.
  static StoppedProcess find(uint32_t index, const ProcessLayout& layout);

  // It stands still: calls can be made in it from here on. `deadline`, `abandoned`: as Injector has them.
  // Throws process_gone, unsupported, busy, and what inject() throws.
  void take(const StoppedProcesses& stop, TimePoint deadline, const std::atomic<bool>* abandoned);

  // With its userfaultfd and that one's record at hand: says in the record what an agent after us must know
  // of our calls, and finds out what has to stay. Throws unsupported where that cannot be told.
  void find_what_stays(const StoppedProcesses& stop, const Uffd& uffd, UffdRecord& record,
                       std::vector<std::string>& notes);

  // Whether an address lies in `keep`. Asked in ascending order from `from` on, which goes along.
  bool keeps(uint64_t address, size_t& from) const;

 private:
  void keep_pinned(std::span<const Tracee> threads, std::vector<std::string>& notes);
};

}  // namespace medes
