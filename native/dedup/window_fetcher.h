// Brings in the remote base pages behind a plan's windows: a thread runs ahead of the encoder, so that pages
// travel while others are encoded. Internal to dedup/.
#pragma once

#include <atomic>
#include <span>
#include <thread>
#include <vector>

#include "bases/base_set.h"
#include "codec/base_view.h"
#include "codec/window_plan.h"

namespace medes {

class WindowFetcher {
 public:
  // Both outlive this object. Bases of the plan that are not in `bases` get an empty view.
  WindowFetcher(const WindowPlan& plan, BaseSet& bases);
  ~WindowFetcher();  // waits for what is under way
  WindowFetcher(const WindowFetcher&) = delete;
  WindowFetcher& operator=(const WindowFetcher&) = delete;

  std::span<const BaseView> views() const { return views_; }  // in the plan's slot order
  // Blocks until the windows of pages first … first + count - 1, or of every stride-th of them, are there.
  // Safe from any thread. Throws the transport's code.
  void fetch(uint64_t first, uint64_t count, uint64_t stride = 1) const;
  void run_ahead();

 private:
  Code ensure(uint64_t first, uint64_t end, uint64_t stride) const;

  const WindowPlan& plan_;
  BaseSet& bases_;
  std::vector<BaseView> views_;
  std::vector<int64_t> remote_slots_;  // of bases_, by slot of the plan; -1: local or not there
  bool all_local_ = true;
  std::atomic<bool> stop_{false};
  std::thread ahead_;
};

}  // namespace medes
