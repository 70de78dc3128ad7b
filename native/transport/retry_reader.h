// Decorator: repeats the reads of a batch that failed for a passing reason, within the time its waiter gives.
#pragma once

#include <chrono>
#include <memory>

#include "transport/page_reader.h"

namespace medes {

struct RetryOptions {
  int attempts = 4;                             // including the first
  std::chrono::milliseconds backoff_first{15};  // before the second attempt; doubles each time
};

// A peer that is away may come back; a byte that was damaged on the way may arrive whole. All else stays.
bool is_transient(Code code) noexcept;

std::shared_ptr<PageReader> make_retry_reader(std::shared_ptr<PageReader> inner, RetryOptions options = {});

}  // namespace medes
