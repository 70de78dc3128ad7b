#include "transport/page_reader.h"

#include <atomic>
#include <mutex>

#include "common/limits.h"

namespace medes {

namespace {

// In the order of the enumerators; grows at the end only, so that what is below `count` may be read without
// the lock.
struct Names {
  std::mutex mutex;
  std::array<std::string, kTransports> all{"local", "tcp", "tcp+tls", "rdma"};
  std::atomic<size_t> count{4};
};

Names& names() {
  static Names known;
  return known;
}

}  // namespace

const char* transport_name(Transport transport) noexcept {
  const auto i = static_cast<size_t>(transport);
  return i < names().count.load(std::memory_order_acquire) ? names().all[i].c_str() : "unknown";
}

Transport transport_named(const std::string& name) {
  Names& known = names();
  const std::lock_guard lock(known.mutex);
  const size_t count = known.count.load(std::memory_order_relaxed);
  for (size_t i = 0; i < count; ++i)
    if (known.all[i] == name) return static_cast<Transport>(i);
  if (count == kTransports) throw Error(Code::limit_exceeded, "transports in one process", name);
  known.all[count] = name;
  known.count.store(count + 1, std::memory_order_release);
  return static_cast<Transport>(count);
}

void check_reads(std::span<const ReadRequest> reads) {
  if (reads.empty() || reads.size() > kMaxReadsPerBatch)
    throw Error(Code::limit_exceeded, "reads in one batch");
  uint64_t total = 0;
  for (const ReadRequest& read : reads) {
    if (read.length == 0 || read.length > kMaxReadBytes)
      throw Error(Code::limit_exceeded, "length of one read");
    if (!read.destination) throw Error(Code::invalid_argument, "read without destination");
    total += read.length;
  }
  if (total > kMaxBatchBytes) throw Error(Code::limit_exceeded, "bytes in one batch");
}

Code PageReader::read(std::span<const ReadRequest> reads, std::chrono::nanoseconds timeout) {
  auto batch = submit(reads);
  if (!batch->wait(timeout)) return Code::deadline_exceeded;
  for (size_t i = 0; i < reads.size(); ++i)
    if (Code code = batch->status(i); code != Code::ok) return code;
  return Code::ok;
}

}  // namespace medes
