// Turns written pages of file mappings into anonymous memory of equal bytes, which userfaultfd takes.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>
#include <vector>

#include "image/image.h"
#include "tracing/tracee.h"

namespace medes {

// All threads of the process stand still. Runs whose mapping is not any more what it was at the capture are
// left alone. One mremap replaces each run, so that whoever dies at whatever instant, the process has
// either the file's mapping or the complete copy; the agent's death leaves at most one batch of copies behind
// as memory of the process that nobody uses. Returns how many runs were replaced; `notes` says why not all.
// Throws process_gone.
size_t make_anonymous(Injector& injector, pid_t pid, std::span<const FileRun> runs, std::span<const Vma> vmas,
                      std::vector<std::string>& notes);

}  // namespace medes
