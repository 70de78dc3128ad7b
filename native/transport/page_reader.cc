#include "transport/page_reader.h"

#include "common/limits.h"

namespace medes {

const char* transport_name(Transport transport) noexcept {
  switch (transport) {
    case Transport::local: return "local";
    case Transport::tcp: return "tcp";
    case Transport::tcp_tls: return "tcp+tls";
    case Transport::rdma: return "rdma";
  }
  return "unknown";
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
