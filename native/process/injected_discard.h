// The call that gives a sandbox's pages back, when the agent that injected it has died in the middle of it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "image/image.h"

namespace medes {

// Used by one thread, for one adoption.
class InjectedDiscard {
 public:
  // `frame_address`: the stack pointer of injected calls, which tells them from the program's own.
  InjectedDiscard(pid_t pid, uint64_t frame_address) : pid_(pid), frame_address_(frame_address) {}

  // The ranges of the call while it waits for its next event to be read; empty while a thread runs and may be
  // in it; nothing once no thread is. Throws process_gone.
  std::optional<std::vector<AddressRange>> left();

 private:
  bool may_be_inside(pid_t tid);

  const pid_t pid_;
  const uint64_t frame_address_;
  std::map<pid_t, uint64_t> user_ticks_;  // of threads that were running, when first seen so
};

}  // namespace medes
