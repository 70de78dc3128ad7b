// One reclaim: of a dormant sandbox's pages that came back by touches, those that still are what is stored go
// again. Everything else stays as it is, in the sandbox and in its file, so the op costs what was touched.
//
//   look (it runs) ──► stop ──► look again, mark ──► take away ──► note, let go
//
// A crash at each step leaves what one of an eviction does (process/evict.h): marks in the sandbox file that
// the next agent compares with what the kernel says.
#pragma once

#include <memory>
#include <vector>

#include "process/stopped_process.h"
#include "serving/live_sandbox.h"
#include "serving/served_sandbox.h"

namespace medes {

class ReclaimOp {
 public:
  // The sandbox has begun a reclaim (ServedSandbox::begin_reclaim), and outlives the op.
  ReclaimOp(ServedSandbox& sandbox, const ReclaimOptions& options) : sandbox_(sandbox), options_(options) {}

  // As a tracer (run_as_tracer); all are let go when that ends. What has gone is in taken() also when this
  // throws: busy, traced, process_gone, unsupported with nothing gone or a part; cancelled when it is left to
  // the next agent as if we had been killed.
  void run();
  // (blocks) Whether enough of it could go to be worth a stop. Changes nothing.
  bool worth_it();

  const ReclaimResult& result() const { return result_; }
  std::vector<uint64_t> take_taken() { return std::move(taken_); }
  TimePoint stopped_since() const { return stopped_since_; }

 private:
  struct Process : StoppedProcess {
    std::shared_ptr<ProcessMemory> memory;
    std::vector<uint64_t> pages;  // that may go, ascending
  };
  void keep_unchanged(Process& p);
  void keep_what_stays(Process& p);
  void take_away(Process& p);

  ServedSandbox& sandbox_;
  const ReclaimOptions& options_;
  std::vector<Process> processes_;
  std::vector<uint64_t> taken_;
  ReclaimResult result_;
  TimePoint stopped_since_{};
};

}  // namespace medes
