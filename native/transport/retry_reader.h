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

// Of a page, at once and over the same connection: a peer that is away may come back; a byte that was damaged
// on the way may arrive whole. Whether a failure passes at all is another question (passes, common/error.h).
bool worth_rereading(Code code) noexcept;

std::shared_ptr<PageReader> make_retry_reader(std::shared_ptr<PageReader> inner, RetryOptions options = {});

}  // namespace medes
