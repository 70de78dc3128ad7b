#include "serving/process_memory.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "procfs/proc.h"

namespace medes {
namespace {

constexpr int kMaxUnregisterPasses = 1000;

}  // namespace

ProcessMemory::ProcessMemory(pid_t pid, uint32_t process, const ImageLayout& layout, Uffd uffd,
                             std::span<std::atomic<uint8_t>> states)
    : pid_(pid), process_(process), layout_(layout), uffd_(std::move(uffd)), states_(states) {
  first_page_ = layout.page_count;
  for (const auto& run : layout.runs) {
    if (run.process != process) continue;
    first_page_ = std::min(first_page_, run.first_page);
    end_page_ = std::max(end_page_, run.first_page + run.count);
  }
  if (end_page_ < first_page_) first_page_ = end_page_;
  claims_ = std::vector<std::atomic<uint8_t>>(end_page_ - first_page_);
}

void ProcessMemory::count_missing() {
  uint64_t missing = 0, placed = 0;
  for (uint64_t i = first_page_; i < end_page_; ++i) {
    missing += state(i) == PageState::evicted;
    placed += state(i) == PageState::restored;
  }
  missing_.store(missing, std::memory_order_release);
  placed_.store(placed, std::memory_order_release);
}

bool ProcessMemory::claim(uint64_t page) {
  if (state(page) != PageState::evicted) return false;
  uint8_t expected = 0;
  if (!claims_[page - first_page_].compare_exchange_strong(expected, 1)) return false;
  if (state(page) == PageState::evicted) return true;
  unclaim(page);  // it came in between the two looks
  return false;
}

void ProcessMemory::unclaim(uint64_t page) { claims_[page - first_page_].store(0); }

void ProcessMemory::set_state(uint64_t page, PageState next) {
  const auto before = states_[page].exchange(static_cast<uint8_t>(next), std::memory_order_acq_rel);
  if (before == static_cast<uint8_t>(PageState::restored) && next == PageState::resident)
    placed_.fetch_sub(1);  // the program has given it up again
  if (before != static_cast<uint8_t>(PageState::evicted) || next == PageState::evicted) return;
  missing_.fetch_sub(1);
  if (next == PageState::restored) placed_.fetch_add(1);
}

// Whether one of the image's pages of these origins is wanted; none behind it is looked at.
template <typename F>
bool ProcessMemory::any_page(uint64_t origin, uint64_t bytes, F&& wanted) const {
  for (const auto& run : layout_.runs) {
    if (run.process != process_) continue;
    const uint64_t b = std::max(origin, run.address);
    const uint64_t e = std::min(origin + bytes, run.address + run.count * kPageBytes);
    for (uint64_t a = b; a < e; a += kPageBytes)
      if (wanted(run.first_page + (a - run.address) / kPageBytes)) return true;
  }
  return false;
}

// The program has no use any more for what the image holds for these addresses: they read as zero from now on
// (or are unmapped), and their pages never come back.
void ProcessMemory::forget(std::span<const AddressRange> origins) {
  for (const auto& r : origins)
    (void)any_page(r.begin, r.end - r.begin, [&](uint64_t page) {
      set_state(page, PageState::resident);
      return false;
    });
}

std::vector<MovedPages> ProcessMemory::moved_pages() const {
  std::vector<MovedPages> out;
  for (const auto& s : segments_.all())
    if (s.begin != s.origin && any_missing(s.origin, s.end - s.begin))
      out.push_back({s.origin, s.begin, s.end - s.begin});
  return out;
}

// What the record says of moved memory: that of which something is missing, and that of which a reclaim may
// take something. Where the second has no room in it, what is back of it is the program's own from here on.
std::vector<MovedPages> ProcessMemory::moves_to_note() {
  std::vector<MovedPages> out = moved_pages();
  for (const auto& s : segments_.all()) {
    const uint64_t bytes = s.end - s.begin;
    if (s.begin == s.origin || any_missing(s.origin, bytes) || !any_restored(s.origin, bytes)) continue;
    if (out.size() < ChangeRecord::kMaxMoves)
      out.push_back({s.origin, s.begin, bytes});
    else
      keep_back(s.origin, bytes);
  }
  return out;
}

bool ProcessMemory::any_restored(uint64_t origin, uint64_t bytes) const {
  return any_page(origin, bytes, [&](uint64_t page) { return state(page) == PageState::restored; });
}

void ProcessMemory::keep_back(uint64_t origin, uint64_t bytes) {
  (void)any_page(origin, bytes, [&](uint64_t page) {
    if (state(page) == PageState::restored) set_state(page, PageState::resident);
    return false;
  });
}

bool ProcessMemory::any_missing(uint64_t origin, uint64_t bytes) const {
  return any_page(origin, bytes, [&](uint64_t page) { return is_out(state(page)); });
}

void ProcessMemory::add_mappings_of_layout() {
  for (const auto& v : layout_.processes[process_].vmas)
    if (is_anonymous(v)) segments_.add(v.begin, v.end, v.begin);
}

uint64_t ProcessMemory::page_at(uint64_t address) const {
  const auto origin = segments_.origin_of(address);
  return origin ? layout_.find(process_, *origin) : ImageLayout::kNoPage;
}

uint64_t ProcessMemory::address_of(uint64_t page) const {
  const std::shared_lock lock(mutex_);
  const PageRun& run = layout_.run_of(page);
  const auto where = segments_.place_of(run.address + (page - run.first_page) * kPageBytes);
  return where.bytes == 0 ? 0 : where.address;
}

// The program runs on while its mappings are given back one by one, so one that moves or grows may slip
// through a pass. The kernel is asked of each whether it is still registered, until a pass finds none.
void ProcessMemory::unregister_all() {
  const std::unique_lock lock(mutex_);
  if (!uffd_ || is_forked_child() || gone())
    return;  // a forked child's only descriptor is ours: closing it does all
  try {
    for (int pass = 0; pass < kMaxUnregisterPasses; ++pass) {
      const bool some = unregister_registered();
      if (!settle_events() && !some) return;
    }
  } catch (const Error&) {
    gone_ = true;
  }
}

bool ProcessMemory::unregister_registered() {
  bool some = false;
  uint64_t last_end = 0;
  const auto vmas = read_maps(pid_);
  for (size_t i = 0; i < vmas.size(); ++i) {
    const Vma& v = vmas[i];
    // It may grow while we look, a stack downwards: the gap on that side is given back with it, so that no
    // mapping is ever cut in two.
    const uint64_t next_begin = i + 1 < vmas.size() ? std::max(vmas[i + 1].begin, v.end) : v.end;
    const AddressRange range{v.kind == VmaKind::stack ? last_end : v.begin,
                             v.kind == VmaKind::stack || next_begin > kMaxUserAddress ? v.end : next_begin};
    last_end = v.end;
    const UffdResult result = uffd_.look(v.begin);
    if (result == UffdResult::gone) throw Error(Code::process_gone, "its memory is gone");
    if (result != UffdResult::ok && result != UffdResult::again) continue;
    some = true;
    // Something that cannot be registered may have come to lie in the gap.
    if (result == UffdResult::ok && uffd_.unregister(range.begin, range.end) != 0)
      (void)uffd_.unregister(v.begin, v.end);
  }
  return some;
}

// A call of the program that began before the last mapping was given back waits for its event to be read.
// The kernel answers "again" as long as there is such a call. True when a mapping moved.
bool ProcessMemory::settle_events() {
  uffd_msg messages[kEventsPerRead];
  bool moved = false;
  for (;;) {
    const size_t n = uffd_.read_events(messages);
    for (size_t i = 0; i < n; ++i) {
      const auto& m = messages[i];
      // Nothing was missing when it was forked, so the child has all of its pages: its descriptor can go.
      if (m.event == UFFD_EVENT_FORK) UniqueFd(static_cast<int>(m.arg.fork.ufd)).reset();
      if (m.event == UFFD_EVENT_PAGEFAULT) uffd_.wake(m.arg.pagefault.address & ~(kPageBytes - 1), 1);
      moved |= m.event == UFFD_EVENT_REMAP;
    }
    if (n == 0 && !uffd_.changing()) return moved;
  }
}

void ProcessMemory::wake_all() {
  const std::shared_lock lock(mutex_);
  if (!uffd_) return;
  for (const auto& s : segments_.all()) uffd_.wake(s.begin, (s.end - s.begin) / kPageBytes);
}

void ProcessMemory::wake_everywhere() {
  wake_all();
  if (is_forked_child()) return;
  const std::shared_lock lock(mutex_);
  for (const auto& v : read_maps(pid_))
    if (uffd_ && v.kind != VmaKind::other) uffd_.wake(v.begin, (v.end - v.begin) / kPageBytes);
}

void ProcessMemory::close() {
  const std::unique_lock lock(mutex_);
  close_locked();
}

void ProcessMemory::close_locked() {
  if (file_) file_->set_done();
  told_when_gone_ = {};
  uffd_.close();
  pagemap_.reset();
  if (file_) file_->unlink();
}

bool ProcessMemory::look_whether_gone() {
  const std::shared_lock lock(mutex_);
  if (uffd_ && !gone() && uffd_.memory_gone()) gone_ = true;
  return gone();
}

void ProcessMemory::leave_to_keeper() {
  const std::unique_lock lock(mutex_);
  if (!uffd_) return;
  // A child that has all its pages needs nobody; the kernel alone serves it from then on.
  if (gone() || (is_forked_child() && missing() == 0)) return close_locked();
  keeper::leave_open(uffd_.release(), file_, std::move(told_when_gone_));
}

}  // namespace medes
