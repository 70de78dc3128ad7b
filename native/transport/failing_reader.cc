#include "transport/failing_reader.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace medes {

namespace {

using Clock = std::chrono::steady_clock;

enum class Fate : uint8_t { ok, fail, corrupt };

// What happens to one batch, decided when it is submitted.
struct Script {
  bool dropped = false;
  std::chrono::microseconds delay{0};
  std::vector<Fate> fates;     // one a read
  std::vector<size_t> order;   // in which the reads go out
  std::vector<uint32_t> bits;  // which bit of a corrupted read flips
};

class FailingBatch : public ReadBatch {
 public:
  FailingBatch(PageReader& inner, std::span<const ReadRequest> reads, Script script, const FailurePlan& plan)
      : reads_(reads.begin(), reads.end()),
        script_(std::move(script)),
        status_(reads.size(), Code::peer_unreachable),
        carried_by_(reads.size(), Transport::local),
        corrupt_found_(plan.corrupt_found),
        ready_at_(Clock::now() + script_.delay) {
    std::vector<ReadRequest> group;
    for (size_t index : script_.order) {
      if (script_.fates[index] == Fate::fail) continue;
      group.push_back(reads_[index]);
      sent_.push_back(index);
      if (plan.reorder) {
        inner_.push_back(inner.submit(group));
        group.clear();
      }
    }
    if (!group.empty()) inner_.push_back(inner.submit(group));
  }

  bool wait(std::chrono::nanoseconds timeout) override {
    const auto deadline = Clock::now() + std::min<std::chrono::nanoseconds>(timeout, std::chrono::hours(24));
    if (script_.dropped || deadline < ready_at_) {
      std::this_thread::sleep_until(deadline);
      return false;
    }
    std::this_thread::sleep_until(ready_at_);
    for (auto& batch : inner_)
      if (!batch->wait(deadline - Clock::now())) return false;
    if (!finished_) finish();
    finished_ = true;
    return true;
  }
  Code status(size_t i) const override { return status_[i]; }
  Transport carried_by(size_t i) const override { return carried_by_[i]; }

 private:
  void finish() {
    const bool one_by_one = inner_.size() == sent_.size();
    for (size_t i = 0; i < sent_.size(); ++i) {
      const size_t index = sent_[i];
      status_[index] = one_by_one ? inner_[i]->status(0) : inner_[0]->status(i);
      carried_by_[index] = one_by_one ? inner_[i]->carried_by(0) : inner_[0]->carried_by(i);
      if (script_.fates[index] == Fate::corrupt && status_[index] == Code::ok) {
        const uint32_t bit = script_.bits[index] % (reads_[index].length * 8);
        reads_[index].destination[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
        if (corrupt_found_) status_[index] = Code::corrupt;
      }
    }
  }

  std::vector<ReadRequest> reads_;
  Script script_;
  std::vector<Code> status_;
  std::vector<Transport> carried_by_;
  const bool corrupt_found_;
  Clock::time_point ready_at_;
  std::vector<size_t> sent_;  // indices in the order they went out
  std::vector<std::unique_ptr<ReadBatch>> inner_;
  bool finished_ = false;
};

class FailingReader : public PageReader {
 public:
  FailingReader(std::shared_ptr<PageReader> inner, FailurePlan plan)
      : inner_(std::move(inner)), plan_(plan), random_(plan.seed) {}

  TransportCapabilities capabilities() const override { return inner_->capabilities(); }
  std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) override {
    check_reads(reads);
    return std::make_unique<FailingBatch>(*inner_, reads, script(reads.size()), plan_);
  }
  TransportStats stats() const override { return inner_->stats(); }
  void close() override { inner_->close(); }
  void readdress(const std::string& address, std::span<const std::byte> token) override {
    inner_->readdress(address, token);
  }
  bool reconnect() override { return inner_->reconnect(); }

 private:
  Script script(size_t n) {
    std::lock_guard lock(mutex_);
    auto happens = [&](double p) { return p > 0 && std::uniform_real_distribution<>(0, 1)(random_) < p; };
    Script out;
    out.dropped = happens(plan_.drop);
    if (plan_.delay_max_us)
      out.delay =
          std::chrono::microseconds(std::uniform_int_distribution<uint32_t>(0, plan_.delay_max_us)(random_));
    for (size_t i = 0; i < n; ++i) {
      const bool dead = plan_.die_after_reads && seen_++ >= plan_.die_after_reads;
      out.fates.push_back(dead || happens(plan_.fail) ? Fate::fail
                          : happens(plan_.corrupt)    ? Fate::corrupt
                                                      : Fate::ok);
      out.bits.push_back(static_cast<uint32_t>(random_()));
    }
    out.order.resize(n);
    std::iota(out.order.begin(), out.order.end(), size_t{0});
    if (plan_.reorder) std::shuffle(out.order.begin(), out.order.end(), random_);
    return out;
  }

  std::shared_ptr<PageReader> inner_;
  FailurePlan plan_;
  std::mutex mutex_;
  std::mt19937_64 random_;
  uint64_t seen_ = 0;
};

}  // namespace

std::shared_ptr<PageReader> make_failing_reader(std::shared_ptr<PageReader> inner, FailurePlan plan) {
  if (!inner) throw Error(Code::invalid_argument, "fault reader without inner reader");
  return std::make_shared<FailingReader>(std::move(inner), plan);
}

}  // namespace medes
