// Taking a sandbox over from an agent that died: its userfaultfds, and the truth about every page.
#pragma once

#include <memory>
#include <vector>

#include "serving/live_sandbox.h"
#include "serving/process_memory.h"

namespace medes {

class AdoptOp {
 public:
  explicit AdoptOp(SandboxFile& file);  // outlives the operation

  // Throws process_gone when no process of the sandbox is left, permission_denied, io; busy while a frozen
  // cgroup holds a thread in a call of the agent before.
  void run();

  std::vector<std::shared_ptr<ProcessMemory>> take_memories() { return std::move(memories_); }
  std::vector<std::shared_ptr<ProcessMemory>> take_children() { return std::move(children_); }
  const EvictResult& result() const { return result_; }
  bool held() const { return held_; }  // its processes are stopped (SIGSTOP) until it is restored

 private:
  void require_all_thawed();
  bool adopt_process(uint32_t index);
  bool take_uffd(uint32_t index, Uffd& uffd);
  void finish_injected_call(const UffdRecord& record, ProcessMemory& memory);
  void reconcile(ProcessMemory& memory);
  void adopt_child(const std::string& path);
  bool strangers() const;
  SandboxFile& file_;
  std::vector<std::shared_ptr<ProcessMemory>> memories_, children_;
  EvictResult result_;
  bool held_ = false;
};

}  // namespace medes
