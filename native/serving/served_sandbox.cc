// The handle's own side of a sandbox: state, waiting, record. Its work is in sandbox_restore.cc, _faults.cc,
// _fill.cc, _room.cc.
#include "serving/served_sandbox.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>

#include "common/error.h"
#include "procfs/proc.h"
#include "tracing/tracee.h"

namespace medes {
namespace {

constexpr std::chrono::milliseconds kSettleMost{100};

// A parent that looks after its children by their signs of life (gunicorn) would take those that stood still
// as long as itself for dead: so they get to act, until they sleep, before it does.
void continue_all(std::span<const pid_t> pids) {
  const auto stat_of = [](pid_t pid) {
    try {
      return read_stat(pid);
    } catch (const Error&) {
      return ProcessStat{};  // it has ended
    }
  };
  std::vector<pid_t> roots, below;
  for (const pid_t pid : pids) {
    const bool is_root = std::find(pids.begin(), pids.end(), stat_of(pid).parent) == pids.end();
    (is_root ? roots : below).push_back(pid);
  }
  for (auto pid = below.rbegin(); pid != below.rend(); ++pid) (void)kill(*pid, SIGCONT);
  const auto deadline = std::chrono::steady_clock::now() + kSettleMost;
  const auto acts = [&](pid_t pid) { return stat_of(pid).state == 'R'; };
  while (std::any_of(below.begin(), below.end(), acts) && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  for (const pid_t pid : roots) (void)kill(pid, SIGCONT);
}

}  // namespace

ServedSandbox::ServedSandbox(SandboxServer& server, std::shared_ptr<SandboxFile> file,
                             std::shared_ptr<BaseSet> bases)
    : server_(server),
      file_(std::move(file)),
      bases_(std::move(bases)),
      rebuilder_(file_->layout(), file_->encoded(), *bases_),
      regions_(file_->layout()) {}

void ServedSandbox::add_memory(std::shared_ptr<ProcessMemory> memory) {
  // The memory must not keep the sandbox alive, nor itself.
  memory->on_events([weak = weak_from_this(), m = std::weak_ptr(memory)] {
    const auto self = weak.lock();
    const auto memory = m.lock();
    if (!self || !memory) return;
    std::vector<uint64_t> faults;
    self->drain(memory, faults);
    for (uint64_t address : faults) self->server_.fault_later(self, memory, address);
    self->wake_if_whole();
  });
  const std::lock_guard lock(mutex_);
  memories_.push_back(std::move(memory));
}

std::vector<std::shared_ptr<ProcessMemory>> ServedSandbox::memories() const {
  const std::lock_guard lock(mutex_);
  return memories_;
}

bool ServedSandbox::fills_children() const {
  const auto all = memories();
  return state() != LiveState::lost && std::any_of(all.begin(), all.end(), [](const auto& m) {
           return m->is_forked_child() && !m->gone() && m->missing() > 0;
         });
}

void ServedSandbox::set_evict_result(EvictResult result) {
  const std::lock_guard lock(mutex_);
  evict_result_ = std::move(result);
}

void ServedSandbox::set_stopped_us(uint64_t us) {
  const std::lock_guard lock(mutex_);
  evict_result_.stopped_us = us;
}

EvictResult ServedSandbox::evict_result() const {
  const std::lock_guard lock(mutex_);
  return evict_result_;
}

std::string ServedSandbox::lost_reason() const {
  const std::lock_guard lock(mutex_);
  return lost_reason_;
}

Code ServedSandbox::lost_code() const {
  const std::lock_guard lock(mutex_);
  return lost_code_;
}

void ServedSandbox::check_not_lost() const {
  if (lost_code_ == Code::ok) {
    if (detached_ && state() != LiveState::complete)
      throw Error(Code::cancelled, "the restore is watched no more: its handle was let go of", file_->path());
    return;
  }
  throw Error(lost_code_ == Code::process_gone ? Code::process_gone : Code::lost, lost_reason_, file_->path(),
              "start a new instance");
}

bool ServedSandbox::wait_ready(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [this] { return ready_ || lost_code_ != Code::ok || detached_; });
  check_not_lost();
  return ready_;
}

bool ServedSandbox::wait_complete(std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout,
                    [this] { return state() == LiveState::complete || lost_code_ != Code::ok || detached_; });
  check_not_lost();
  return state() == LiveState::complete;
}

RestoreStats ServedSandbox::stats() const {
  const std::lock_guard lock(mutex_);
  RestoreStats s = stats_;
  s.pages_total = evict_result_.evicted_pages;
  s.pages_prefetched = prefetched_;
  s.pages_background = background_;
  s.faults_demand = faults_;
  s.faults_zero = zero_faults_;
  s.pages_zero = zeros_;
  s.fetch_us = rebuilder_.fetch_us();
  s.apply_us = rebuilder_.apply_us();
  s.place_us = rebuilder_.place_us();
  s.remote_bytes = bases_->remote_read_bytes();
  s.short_of_memory = told_short_of_memory_;
  return s;
}

std::vector<WorkingSetEntry> ServedSandbox::working_set() const {
  const std::lock_guard lock(mutex_);
  return recorded_;
}

void ServedSandbox::set_wake_rule(WakeRule rule) {
  const std::lock_guard lock(mutex_);
  wake_rule_ = std::move(rule);
}

uint64_t ServedSandbox::placed_pages() const {
  uint64_t pages = 0;
  for (const auto& m : memories())
    if (!m->is_forked_child()) pages += m->placed();
  return pages;
}

std::vector<WorkingSetEntry> ServedSandbox::touched() const {
  const std::lock_guard lock(mutex_);
  return touched_;
}

void ServedSandbox::detach() {
  {
    const std::lock_guard lock(mutex_);  // nobody begins to wait unseen
    detached_ = true;
  }
  changed_.notify_all();
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !settling_ && !reclaiming_; });
  }
  end_serving(&ProcessMemory::leave_to_keeper);
}

// (blocks) A thread with a fork event in its hands is about to add the child: that one's only userfaultfd
// must be dealt with like the others'. Nothing can be read any more from those that were.
void ServedSandbox::end_serving(void (ProcessMemory::*how)()) {
  for (size_t ended = 0;;) {
    server_.forget(*this);
    const auto all = memories();
    for (; ended < all.size(); ++ended) (*all[ended].*how)();
    while (draining_ > 0) std::this_thread::yield();
    if (memories().size() == ended) return;
  }
}

void ServedSandbox::restore(const RestoreOptions& options) {
  if (options.working_set.size() > kMaxWorkingSetPages)
    throw Error(Code::limit_exceeded, "the working set has too many pages", file_->path());
  {
    const std::lock_guard lock(mutex_);
    check_not_lost();
    if (state() == LiveState::complete) return;
    LiveState expected = LiveState::dormant;
    if (state_.compare_exchange_strong(expected, LiveState::restoring)) restore_called_ = Clock::now();
    ++running_;
  }
  server_.enqueue([self = shared_from_this(), options] { self->run(options); }, true);
}

uint64_t ServedSandbox::since_restore_us() const {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - restore_called_).count());
}

void ServedSandbox::set_ready() {
  {
    const std::lock_guard lock(mutex_);
    if (ready_) return;
    ready_ = true;
    stats_.ready_us = since_restore_us();
  }
  thaw();
  changed_.notify_all();
  server_.emit(file_->path(), "ready");
}

void ServedSandbox::thaw() {
  Clock::time_point since;
  {
    const std::lock_guard lock(mutex_);
    if (!held_) return;
    held_ = false;
    since = held_since_;
  }
  std::vector<pid_t> pids;
  for (const auto& m : memories())
    if (!m->is_forked_child()) pids.push_back(m->pid());
  if (pids.size() > 1) count_standstill(pids, Clock::now() - since);
  continue_all(pids);
}

// From here on nothing is placed any more: threads that wait for a page wait on, and none ever runs on
// bytes that are not its own. The runtime starts a new instance and kills this one.
void ServedSandbox::lose(Code code, const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    // One that was let go of may be served by another handle, and has lost nothing.
    if (lost_code_ != Code::ok || state() == LiveState::complete || detached_) return;
    lost_code_ = code;
    lost_reason_ = why + " (" + code_name(code) + ")";
    state_ = LiveState::lost;
  }
  changed_.notify_all();
  server_.emit(file_->path(), code == Code::process_gone ? "process_gone" : "lost");
}

bool ServedSandbox::needed() const {
  if (const LiveState now = state(); now != LiveState::dormant && now != LiveState::restoring) return false;
  const auto any = [this] {
    const auto all = memories();
    return std::any_of(all.begin(), all.end(),
                       [](const auto& m) { return m->missing() > 0 && !m->look_whether_gone(); });
  };
  // Of a parent that is gone every fork has been read, and is taken in when nobody is about to.
  return any() || draining_ > 0 || any();
}

bool ServedSandbox::anything_missing() const {
  const auto all = memories();
  return std::any_of(all.begin(), all.end(), [](const auto& m) { return !m->gone() && m->missing() > 0; });
}

bool ServedSandbox::all_gone() const {
  for (const auto& m : memories())
    if (!m->gone()) return false;
  return true;
}

}  // namespace medes
