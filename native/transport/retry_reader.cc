#include "transport/retry_reader.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace medes {

namespace {

using Clock = std::chrono::steady_clock;

struct Counters {
  std::atomic<uint64_t> retries{0};
};

class RetryBatch : public ReadBatch {
 public:
  RetryBatch(std::shared_ptr<PageReader> inner, std::span<const ReadRequest> reads, RetryOptions options,
             std::shared_ptr<Counters> counters)
      : inner_(std::move(inner)),
        options_(options),
        counters_(std::move(counters)),
        all_(reads.begin(), reads.end()),
        status_(reads.size(), Code::ok),
        carried_by_(reads.size(), Transport::local),
        current_(inner_->submit(reads)) {
    for (size_t i = 0; i < reads.size(); ++i) indices_.push_back(i);
  }

  bool wait(std::chrono::nanoseconds timeout) override {
    const auto deadline = Clock::now() + std::min<std::chrono::nanoseconds>(timeout, std::chrono::hours(24));
    while (current_) {
      if (!current_->wait(deadline - Clock::now())) return false;
      std::vector<size_t> again;
      for (size_t i = 0; i < indices_.size(); ++i) {
        status_[indices_[i]] = current_->status(i);
        carried_by_[indices_[i]] = current_->carried_by(i);
        if (worth_rereading(current_->status(i))) again.push_back(indices_[i]);
      }
      current_.reset();
      if (again.empty() || ++attempt_ >= options_.attempts) return true;
      const auto pause = options_.backoff_first * (1 << std::min(attempt_ - 1, 10));
      if (Clock::now() + pause >= deadline) return true;
      std::this_thread::sleep_for(pause);
      resubmit(std::move(again));
    }
    return true;
  }
  Code status(size_t i) const override { return status_[i]; }
  Transport carried_by(size_t i) const override { return carried_by_[i]; }

 private:
  void resubmit(std::vector<size_t> again) {
    indices_ = std::move(again);
    std::vector<ReadRequest> reads;
    for (size_t i : indices_) reads.push_back(all_[i]);
    counters_->retries += reads.size();
    current_ = inner_->submit(reads);
  }

  std::shared_ptr<PageReader> inner_;
  RetryOptions options_;
  std::shared_ptr<Counters> counters_;
  std::vector<ReadRequest> all_;
  std::vector<Code> status_;
  std::vector<Transport> carried_by_;
  std::vector<size_t> indices_;  // of current_'s reads in all_
  int attempt_ = 0;
  std::unique_ptr<ReadBatch> current_;  // destroyed first: it writes into the destinations
};

class RetryReader : public PageReader {
 public:
  RetryReader(std::shared_ptr<PageReader> inner, RetryOptions options)
      : inner_(std::move(inner)), options_(options), counters_(std::make_shared<Counters>()) {}
  TransportCapabilities capabilities() const override { return inner_->capabilities(); }
  std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) override {
    return std::make_unique<RetryBatch>(inner_, reads, options_, counters_);
  }
  TransportStats stats() const override {
    TransportStats stats = inner_->stats();
    stats.retries += counters_->retries;
    return stats;
  }
  void close() override { inner_->close(); }
  void readdress(const std::string& address, std::span<const std::byte> token) override {
    inner_->readdress(address, token);
  }
  bool reconnect() override { return inner_->reconnect(); }

 private:
  std::shared_ptr<PageReader> inner_;
  RetryOptions options_;
  std::shared_ptr<Counters> counters_;
};

}  // namespace

bool worth_rereading(Code code) noexcept { return code == Code::peer_unreachable || code == Code::corrupt; }

std::shared_ptr<PageReader> make_retry_reader(std::shared_ptr<PageReader> inner, RetryOptions options) {
  if (!inner || options.attempts < 1) throw Error(Code::invalid_argument, "retry reader");
  return std::make_shared<RetryReader>(std::move(inner), options);
}

}  // namespace medes
