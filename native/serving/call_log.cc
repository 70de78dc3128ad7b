#include "serving/call_log.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "common/limits.h"
#include "serving/keeper.h"

namespace medes {
namespace {

constexpr auto kMaxMessages = ChangeRecord::kMaxMessages;
constexpr auto kMaxMoves = ChangeRecord::kMaxMoves;

constexpr uint64_t kMaxAddress = 1ull << 47;

bool is_call(const uffd_msg& m) { return m.event != 0 && m.event != UFFD_EVENT_PAGEFAULT; }

}  // namespace

// The mark that makes the log count comes last, and only over an empty one.
void CallLog::begin_set() {
  if (record_->log_is_open()) return;
  std::memset(record_->messages, 0, sizeof record_->messages);
  for (auto& part : record_->parts) part = LogPart{};
  used_ = 0;
  add_part();
  record_->order.store(ChangeRecord::open, std::memory_order_release);
  record_->log_set.store(record_->sets() + 1, std::memory_order_release);
}

// From here on it is we who read. After too many kills over one set nothing more is logged.
void CallLog::add_part() {
  for (auto& part : record_->parts) {
    if (part.used != 0) continue;
    part.holder = keeper::holder_of(-1);
    part.first = used_;
    std::atomic_thread_fence(std::memory_order_release);
    part.used = 1;
    return;
  }
  used_ = kMaxMessages;
}

size_t CallLog::read(const Uffd& uffd, std::span<uffd_msg> out) {
  begin_set();
  if (used_ == kMaxMessages) {
    record_->unlogged.store(1, std::memory_order_release);
    return uffd.read_events(out);
  }
  // The kernel writes into the log itself: there is no instant at which only we know.
  const auto room = std::span(record_->messages).subspan(used_);
  const size_t n = uffd.read_events(room.first(std::min(out.size(), room.size())));
  std::copy_n(room.begin(), n, out.begin());
  // Faults are raised anew for the next agent, and may be written over.
  if (std::any_of(room.begin(), room.begin() + static_cast<ptrdiff_t>(n), is_call))
    used_ += static_cast<uint32_t>(n);
  return n;
}

size_t CallLog::read_some(const Uffd& uffd, std::span<uffd_msg> out, size_t& kept,
                          const std::function<bool(const uffd_msg&)>& keep) {
  begin_set();
  const bool was_unlogged = record_->unlogged.exchange(1, std::memory_order_acq_rel) != 0;
  const size_t n = uffd.read_events(out);
  kept = static_cast<size_t>(
      std::stable_partition(out.begin(), out.begin() + static_cast<ptrdiff_t>(n), keep) - out.begin());
  if (was_unlogged || kept > kMaxMessages - used_) return n;
  std::copy_n(out.begin(), kept, record_->messages + used_);
  if (std::any_of(out.begin(), out.begin() + static_cast<ptrdiff_t>(kept), is_call))
    used_ += static_cast<uint32_t>(kept);
  record_->unlogged.store(0, std::memory_order_release);
  return n;
}

void CallLog::decide(ChangeRecord::Order order) {
  begin_set();
  record_->order.store(order, std::memory_order_release);
}

void CallLog::commit(const std::optional<std::vector<MovedPages>>& moves) {
  uint32_t bank = record_->bank(), count = record_->move_count();
  if (moves) {
    bank ^= 1;
    count = static_cast<uint32_t>(std::min<size_t>(moves->size(), kMaxMoves + 1));
    std::copy_n(moves->begin(), std::min(count, kMaxMoves), record_->moves[bank]);
  }
  record_->committed.store(ChangeRecord::pack(record_->sets() + 1, bank, count), std::memory_order_release);
  record_->unlogged.store(0, std::memory_order_release);
}

std::optional<std::vector<CallLog::Left>> CallLog::left_in(const ChangeRecord& record) {
  if (record.unlogged.load(std::memory_order_acquire) != 0) return std::nullopt;
  std::vector<Left> calls;
  if (!record.log_is_open()) return calls;
  const LogPart* part = record.parts;
  for (uint32_t i = 0; i < kMaxMessages; ++i) {
    while (part + 1 < std::end(record.parts) && part[1].used != 0 && part[1].first <= i) ++part;
    const uffd_msg& m = record.messages[i];
    if (is_call(m)) calls.push_back({m, part->holder, i});
  }
  return calls;
}

std::optional<std::vector<CallLog::Left>> CallLog::take_left() {
  auto calls = left_in(*record_);
  if (!calls || calls->empty()) return calls;
  used_ = calls->back().number + 1;
  add_part();
  return calls;
}

std::optional<std::vector<MovedPages>> CallLog::moves() const {
  const uint32_t count = record_->move_count();
  if (count > kMaxMoves) return std::nullopt;
  const MovedPages* const bank = record_->moves[record_->bank()];
  const auto is_sound = [](const MovedPages& m) {
    const auto fits = [&](uint64_t at) {
      return at % kPageBytes == 0 && at <= kMaxAddress && m.bytes <= kMaxAddress - at;
    };
    return m.bytes != 0 && m.bytes % kPageBytes == 0 && fits(m.origin) && fits(m.address);
  };
  if (!std::all_of(bank, bank + count, is_sound)) return std::nullopt;
  return std::vector<MovedPages>(bank, bank + count);
}

}  // namespace medes
