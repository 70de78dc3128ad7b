#include "transport/fallback_reader.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace medes {

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto kReconnectWait = 200ms;

// What another way may answer differently.
bool worth_another_way(Code code) {
  return code == Code::peer_unreachable || code == Code::not_found || code == Code::internal;
}

struct Shared {
  std::shared_ptr<PageReader> first;
  std::shared_ptr<PageReader> second;
  std::atomic<uint64_t> retries{0}, fallbacks{0};
};

class FallbackBatch : public ReadBatch {
 public:
  FallbackBatch(std::shared_ptr<Shared> shared, std::span<const ReadRequest> reads)
      : shared_(std::move(shared)),
        all_(reads.begin(), reads.end()),
        status_(reads.size(), Code::ok),
        carried_by_(reads.size(), Transport::local),
        current_(shared_->first->submit(reads)) {
    for (size_t i = 0; i < reads.size(); ++i) indices_.push_back(i);
  }

  bool wait(std::chrono::nanoseconds timeout) override {
    const auto deadline = Clock::now() + std::min<std::chrono::nanoseconds>(timeout, 24h);
    while (current_) {
      if (!current_->wait(deadline - Clock::now())) return false;
      std::vector<size_t> failed;
      bool lost_connection = false;
      for (size_t i = 0; i < indices_.size(); ++i) {
        const Code code = status_[indices_[i]] = current_->status(i);
        carried_by_[indices_[i]] = current_->carried_by(i);
        lost_connection |= code == Code::peer_unreachable;
        if (worth_another_way(code)) failed.push_back(indices_[i]);
      }
      current_.reset();
      if (failed.empty() || stage_ == Stage::second) return true;
      next(std::move(failed), lost_connection, deadline);
    }
    return true;
  }
  Code status(size_t i) const override { return status_[i]; }
  Transport carried_by(size_t i) const override { return carried_by_[i]; }

 private:
  enum class Stage { first, again, second };

  void next(std::vector<size_t> failed, bool lost_connection, Clock::time_point deadline) {
    indices_ = std::move(failed);
    std::vector<ReadRequest> reads;
    for (size_t i : indices_) reads.push_back(all_[i]);
    const auto patience = std::min<Clock::duration>(deadline - Clock::now(), kReconnectWait);
    if (stage_ == Stage::first && lost_connection && shared_->first->await_connection(patience)) {
      stage_ = Stage::again;
      shared_->retries += reads.size();
      current_ = shared_->first->submit(reads);
    } else {
      stage_ = Stage::second;
      shared_->fallbacks += reads.size();
      current_ = shared_->second->submit(reads);
    }
  }

  std::shared_ptr<Shared> shared_;
  std::vector<ReadRequest> all_;
  std::vector<Code> status_;
  std::vector<Transport> carried_by_;
  std::vector<size_t> indices_;  // of current_'s reads in all_
  Stage stage_ = Stage::first;
  std::unique_ptr<ReadBatch> current_;  // destroyed first: it writes into the destinations
};

class FallbackReader : public PageReader {
 public:
  FallbackReader(std::shared_ptr<PageReader> first, std::shared_ptr<PageReader> second)
      : shared_(std::make_shared<Shared>()) {
    shared_->first = std::move(first);
    shared_->second = std::move(second);
  }
  TransportCapabilities capabilities() const override {
    return shared_->first->connected() ? shared_->first->capabilities() : shared_->second->capabilities();
  }
  std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) override {
    check_reads(reads);
    return std::make_unique<FallbackBatch>(shared_, reads);
  }
  TransportStats stats() const override {
    const TransportStats first = shared_->first->stats(), second = shared_->second->stats();
    TransportStats out = first;
    out.bytes += second.bytes;
    for (size_t i = 0; i < kTransports; ++i) out.by_transport[i] += second.by_transport[i];
    out.failures = second.failures;  // what failed on the first way was tried on the second
    out.retries += second.retries + shared_->retries;
    out.reconnects += second.reconnects;
    out.fallbacks = shared_->fallbacks;
    out.refused_tokens = second.refused_tokens;
    return out;
  }
  void close() override {
    shared_->first->close();
    shared_->second->close();
  }
  void readdress(const std::string& address, std::span<const std::byte> token) override {
    shared_->second->readdress(address, token);
  }
  bool reconnect() override {
    const bool first = shared_->first->reconnect();
    return shared_->second->reconnect() && first;
  }

 private:
  std::shared_ptr<Shared> shared_;
};

}  // namespace

std::shared_ptr<PageReader> make_fallback_reader(std::shared_ptr<PageReader> first,
                                                 std::shared_ptr<PageReader> second) {
  if (!first || !second) throw Error(Code::invalid_argument, "fallback reader needs two ways");
  return std::make_shared<FallbackReader>(std::move(first), std::move(second));
}

}  // namespace medes
