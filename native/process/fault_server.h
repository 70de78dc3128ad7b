// Node-wide: owns the threads that serve faults and run restores, and what they serve.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "serving/live_sandbox.h"

namespace medes {

struct FaultServerStats {
  uint64_t sandboxes = 0, faults = 0, events = 0, restores = 0, descriptors = 0;
};

class FaultServer {
 public:
  explicit FaultServer(size_t threads);
  ~FaultServer();  // close()
  FaultServer(const FaultServer&) = delete;
  FaultServer& operator=(const FaultServer&) = delete;

  int event_fd() const;  // readable when take_events() has something
  std::vector<std::pair<std::string, std::string>> take_events();

  // Stops the sandbox, leaves out what changed since the capture, registers, evicts, lets it go. Blocks.
  // The sandbox is as it was when this throws: cancelled, process_gone, traced, permission_denied, busy,
  // unsupported.
  std::shared_ptr<LiveSandbox> evict(const MemoryImage& image, std::shared_ptr<SandboxFile> file,
                                     std::shared_ptr<BaseSet> bases, const EvictOptions& options,
                                     const std::atomic<bool>* cancelled);

  // Takes a sandbox's userfaultfds back after an agent restart and finds out which pages are out.
  std::shared_ptr<LiveSandbox> adopt(std::shared_ptr<SandboxFile> file, std::shared_ptr<BaseSet> bases,
                                     WakeRule wake = {});

  // Lets go of what is still held of processes that ended after their sandbox was detached. Cheap.
  void release_gone();

  FaultServerStats stats() const;
  void close();  // idempotent; sandboxes that are not complete wait until they are adopted

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Empty when the live driver can run here; else (what is missing, how to get it).
std::vector<std::pair<std::string, std::string>> probe_live();

}  // namespace medes
