#include "transport/local/local_reader.h"

#include <atomic>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "common/limits.h"

namespace medes {

namespace {

// Copies are made at submit: there is nothing to wait for.
class LocalBatch : public ReadBatch {
 public:
  explicit LocalBatch(std::vector<Code> status) : status_(std::move(status)) {}
  bool wait(std::chrono::nanoseconds) override { return true; }
  Code status(size_t i) const override { return status_.empty() ? Code::ok : status_[i]; }
  Transport carried_by(size_t) const override { return Transport::local; }

 private:
  std::vector<Code> status_;  // empty: every read is ok
};

class LocalReader : public PageReader {
 public:
  explicit LocalReader(std::span<const std::shared_ptr<Slab>> slabs) {
    for (const auto& slab : slabs) slabs_.emplace(slab->base_id(), slab);
  }
  TransportCapabilities capabilities() const override {
    return {Transport::local, true, true, kMaxReadBytes, kMaxReadsPerBatch};
  }

  std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) override {
    check_reads(reads);
    std::vector<Code> status;
    uint64_t copied = 0, failed = 0;
    const Slab* slab = nullptr;  // of the read before: a batch is mostly of one base
    for (size_t i = 0; i < reads.size(); ++i) {
      const Code code = copy(reads[i], slab);
      if (code == Code::ok) {
        copied += reads[i].length;
        continue;
      }
      if (status.empty()) status.assign(reads.size(), Code::ok);
      status[i] = code;
      ++failed;
    }
    ++batches_;
    reads_ += reads.size();
    bytes_ += copied;
    failures_ += failed;
    return std::make_unique<LocalBatch>(std::move(status));
  }

  TransportStats stats() const override {
    TransportStats out;
    out.batches = batches_;
    out.reads = reads_;
    out.bytes = out.by_transport[static_cast<size_t>(Transport::local)] = bytes_;
    out.failures = failures_;
    return out;
  }
  void close() override { closed_ = true; }

 private:
  Code copy(const ReadRequest& read, const Slab*& slab) const {
    if (closed_) return Code::peer_unreachable;
    if (!slab || slab->base_id() != read.base_id) {
      const auto found = slabs_.find(read.base_id);
      if (found == slabs_.end()) return Code::not_found;
      slab = found->second.get();
    }
    const Bytes all = slab->bytes();
    if (read.offset > all.size() || read.length > all.size() - read.offset) return Code::invalid_argument;
    std::memcpy(read.destination, all.data() + read.offset, read.length);
    return Code::ok;
  }

  std::unordered_map<uint64_t, std::shared_ptr<Slab>> slabs_;
  std::atomic<bool> closed_{false};
  std::atomic<uint64_t> batches_{0}, reads_{0}, bytes_{0}, failures_{0};
};

}  // namespace

std::shared_ptr<PageReader> make_local_reader(std::span<const std::shared_ptr<Slab>> slabs) {
  return std::make_shared<LocalReader>(slabs);
}

}  // namespace medes
