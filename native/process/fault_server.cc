#include "process/fault_server.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "common/error.h"
#include "common/fault_point.h"
#include "common/wiped.h"
#include "process/adopt.h"
#include "process/evict.h"
#include "process/reclaim.h"
#include "serving/keeper.h"
#include "serving/served_sandbox.h"

namespace medes {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxQueuedEvents = 100'000;
// Faults come in bursts: who served one looks for the next this long before it sleeps, since waking an idle
// core costs as much as the fault itself.
constexpr std::chrono::microseconds kSpin{50};
constexpr std::chrono::seconds kChildrenPatience{5};
constexpr uint64_t kStopId = 0, kLaterId = 1, kFirstId = 2;

struct Watched {
  std::shared_ptr<ServedSandbox> sandbox;
  std::shared_ptr<ProcessMemory> memory;
  std::shared_ptr<UniqueFd> process;  // set when this entry watches a pidfd
};

struct LaterFault {
  std::shared_ptr<ServedSandbox> sandbox;
  std::shared_ptr<ProcessMemory> memory;
  uint64_t address = 0;
};

UniqueFd checked(int fd, const char* what) {
  if (fd < 0) throw errno_error(errno, what);
  return UniqueFd(fd);
}

void signal_eventfd(int fd) {
  const uint64_t one = 1;
  (void)!write(fd, &one, sizeof one);  // it only fails when already as readable as can be
}

}  // namespace

struct FaultServer::Impl : SandboxServer {
  UniqueFd epoll = checked(epoll_create1(EPOLL_CLOEXEC), "cannot make an epoll descriptor");
  UniqueFd stop = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "cannot make an event descriptor");
  UniqueFd later_signal =
      checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE), "cannot make an event descriptor");
  UniqueFd event_signal = checked(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "cannot make an event descriptor");

  std::mutex mutex;  // guards watched, sandboxes, next_id
  std::unordered_map<uint64_t, Watched> watched;
  std::map<std::string, std::shared_ptr<ServedSandbox>> sandboxes;
  uint64_t next_id = kFirstId;

  std::mutex events_mutex;
  std::deque<std::pair<std::string, std::string>> events;

  std::mutex jobs_mutex;
  struct JobQueue {
    std::deque<std::function<void()>> jobs;
    std::condition_variable wake;
  };
  JobQueue urgent_jobs, jobs;  // under jobs_mutex
  bool closing = false;

  std::mutex later_mutex;
  std::deque<LaterFault> later;

  struct LaterJob {
    std::function<void()> job;
    bool urgent = false;
  };
  std::multimap<Clock::time_point, LaterJob> later_jobs;  // under jobs_mutex
  std::condition_variable later_wake;

  std::atomic<uint64_t> fault_wakes{0}, events_emitted{0}, restores{0};
  std::vector<std::thread> threads;
  std::map<pid_t, OwnUffd> own_uffds;  // of processes deduplicated before, under `mutex`
  const bool many_cores = std::thread::hardware_concurrency() > 1;
  bool closed = false;

  void start(size_t fault_threads);
  void start_thread(const char* name, std::function<void()> body);
  void serve_faults();
  int next_event(epoll_event& e, Clock::time_point awake_until, Rebuilder::Worker& worker);
  void run_jobs(JobQueue& queue);
  void run_later_jobs();
  void add_to_epoll(int fd, uint64_t id, uint32_t what);
  void serve_later(Rebuilder::Worker& worker);

  void emit(const std::string& path, const char* event) override;
  void enqueue(std::function<void()> job, bool urgent) override;
  void enqueue_later(std::function<void()> job, bool urgent, std::chrono::milliseconds after) override;
  void forget(const ServedSandbox& sandbox) override;
  void watch(std::shared_ptr<ServedSandbox> sandbox, std::shared_ptr<ProcessMemory> memory) override;
  void fault_later(std::shared_ptr<ServedSandbox> sandbox, std::shared_ptr<ProcessMemory> memory,
                   uint64_t address) override;
  ReclaimResult reclaim(ServedSandbox& sandbox, const ReclaimOptions& options) override;
  void serve(const std::shared_ptr<ServedSandbox>& sandbox);
};

void FaultServer::Impl::start(size_t fault_threads) {
  add_to_epoll(stop.get(), kStopId, EPOLLIN);  // level-triggered: all threads see it
  add_to_epoll(later_signal.get(), kLaterId, EPOLLIN | EPOLLEXCLUSIVE);
  for (size_t i = 0; i < std::max<size_t>(fault_threads, 1); ++i)
    start_thread("medes-fault", [this] { serve_faults(); });
  const size_t restorers = std::max(2u, std::thread::hardware_concurrency());
  // Threads for urgent work only, so that the bulk of one restore never holds up the start of another.
  // They may wait for peers, so there are more of them than cores; a restore takes as many as there are
  // cores.
  for (size_t i = 0; i < std::max<size_t>(4 * restorers, 16); ++i)
    start_thread("medes-urgent", [this] { run_jobs(urgent_jobs); });
  for (size_t i = 0; i < restorers; ++i) start_thread("medes-bulk", [this] { run_jobs(jobs); });
  start_thread("medes-later", [this] { run_later_jobs(); });
}

void FaultServer::Impl::start_thread(const char* name, std::function<void()> body) {
  threads.emplace_back(std::move(body));
  (void)pthread_setname_np(threads.back().native_handle(), name);  // for profiles
}

void FaultServer::Impl::add_to_epoll(int fd, uint64_t id, uint32_t what) {
  epoll_event e{};
  e.events = what;
  e.data.u64 = id;
  if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &e) != 0)
    throw errno_error(errno, "cannot watch a descriptor");
}

// (blocks) As epoll_wait for one event, but stays awake until `awake_until`.
int FaultServer::Impl::next_event(epoll_event& e, Clock::time_point awake_until, Rebuilder::Worker& worker) {
  do {
    if (const int n = epoll_wait(epoll.get(), &e, 1, 0); n != 0) return n;
  } while (Clock::now() < awake_until);
  worker.wipe();
  WorkScope::end();
  return epoll_wait(epoll.get(), &e, 1, -1);
}

void FaultServer::Impl::serve_faults() {
  Rebuilder::Worker worker;
  Clock::time_point awake_until{};
  for (;;) {
    epoll_event e{};
    const int n = next_event(e, awake_until, worker);
    if (n < 0 && errno != EINTR) return;
    if (n <= 0) continue;
    const uint64_t id = e.data.u64;  // epoll_event is packed: nothing may refer into it
    if (id == kStopId) return;
    if (id == kLaterId) {
      serve_later(worker);
      continue;
    }
    Watched entry;
    {
      const std::lock_guard lock(mutex);
      auto it = watched.find(id);
      if (it == watched.end()) continue;
      entry = it->second;
      if (entry.process) watched.erase(it);
    }
    ++fault_wakes;
    if (entry.process)
      entry.sandbox->handle_exit(*entry.memory);
    else
      entry.sandbox->handle_readable(entry.memory, worker);
    awake_until = many_cores ? Clock::now() + kSpin : Clock::time_point{};
  }
}

void FaultServer::Impl::serve_later(Rebuilder::Worker& worker) {
  uint64_t one = 0;
  if (read(later_signal.get(), &one, sizeof one) != sizeof one) return;
  LaterFault fault;
  {
    const std::lock_guard lock(later_mutex);
    if (later.empty()) return;
    fault = std::move(later.front());
    later.pop_front();
  }
  fault.sandbox->handle_fault(fault.memory, fault.address, worker);
}

void FaultServer::Impl::run_jobs(JobQueue& queue) {
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(jobs_mutex);
      queue.wake.wait(lock, [&] { return closing || !queue.jobs.empty(); });
      if (closing) return;
      job = std::move(queue.jobs.front());
      queue.jobs.pop_front();
    }
    ++restores;
    const WorkScope scope;
    job();
  }
}

void FaultServer::Impl::emit(const std::string& path, const char* event) {
  {
    const std::lock_guard lock(events_mutex);
    if (events.size() >= kMaxQueuedEvents) events.pop_front();  // nobody listens
    events.emplace_back(path, event);
  }
  ++events_emitted;
  signal_eventfd(event_signal.get());
}

void FaultServer::Impl::enqueue(std::function<void()> job, bool urgent) {
  JobQueue& queue = urgent ? urgent_jobs : jobs;
  {
    const std::lock_guard lock(jobs_mutex);
    queue.jobs.push_back(std::move(job));
  }
  queue.wake.notify_one();
}

void FaultServer::Impl::enqueue_later(std::function<void()> job, bool urgent,
                                      std::chrono::milliseconds after) {
  {
    const std::lock_guard lock(jobs_mutex);
    if (closing) return;
    later_jobs.emplace(Clock::now() + after, LaterJob{std::move(job), urgent});
  }
  later_wake.notify_one();
}

void FaultServer::Impl::run_later_jobs() {
  std::unique_lock lock(jobs_mutex);
  while (!closing) {
    if (later_jobs.empty()) {
      later_wake.wait(lock);
      continue;
    }
    const auto first = later_jobs.begin();
    if (const auto due = first->first; due > Clock::now()) {
      later_wake.wait_until(lock, due);
      continue;
    }
    LaterJob next = std::move(first->second);
    later_jobs.erase(first);
    lock.unlock();
    enqueue(std::move(next.job), next.urgent);
    lock.lock();
  }
}

void FaultServer::Impl::forget(const ServedSandbox& sandbox) {
  std::vector<Watched> dropped;  // destroyed outside the lock
  const std::lock_guard lock(mutex);
  for (auto it = watched.begin(); it != watched.end();) {
    if (it->second.sandbox.get() == &sandbox) {
      // The sandbox keeps the same open file, so closing our copy alone would leave the entry behind.
      const int fd = it->second.process ? it->second.process->get() : it->second.memory->fd();
      if (fd >= 0) (void)epoll_ctl(epoll.get(), EPOLL_CTL_DEL, fd, nullptr);
      dropped.push_back(std::move(it->second));
      it = watched.erase(it);
    } else {
      ++it;
    }
  }
  // The next one of this id has the same path, and may be served already.
  if (const auto it = sandboxes.find(sandbox.file()->path());
      it != sandboxes.end() && it->second.get() == &sandbox) {
    dropped.push_back({std::move(it->second), nullptr, nullptr});
    sandboxes.erase(it);
  }
}

void FaultServer::Impl::watch(std::shared_ptr<ServedSandbox> sandbox, std::shared_ptr<ProcessMemory> memory) {
  if (memory->fd() < 0) return;  // nothing of it was ever out
  const std::lock_guard lock(mutex);
  const uint64_t id = next_id++;
  watched[id] = {sandbox, memory, nullptr};
  add_to_epoll(memory->fd(), id, EPOLLIN | EPOLLET);
  if (memory->is_forked_child()) return;
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, memory->pid(), 0));
  if (pidfd < 0) return;
  auto process = std::make_shared<UniqueFd>(pidfd);
  const uint64_t process_id = next_id++;
  watched[process_id] = {sandbox, memory, process};
  add_to_epoll(pidfd, process_id, EPOLLIN | EPOLLONESHOT);
}

void FaultServer::Impl::fault_later(std::shared_ptr<ServedSandbox> sandbox,
                                    std::shared_ptr<ProcessMemory> memory, uint64_t address) {
  {
    const std::lock_guard lock(later_mutex);
    later.push_back({std::move(sandbox), std::move(memory), address});
  }
  signal_eventfd(later_signal.get());
}

ReclaimResult FaultServer::Impl::reclaim(ServedSandbox& sandbox, const ReclaimOptions& options) {
  if (!sandbox.begin_reclaim()) return {};
  ReclaimOp op(sandbox, options);
  struct End {
    ServedSandbox& sandbox;
    ReclaimOp& op;
    ~End() { sandbox.end_reclaim(op.take_taken()); }
  } end{sandbox, op};
  if (!op.worth_it()) return op.result();
  run_as_tracer([&] { op.run(); });
  ReclaimResult result = op.result();
  result.stopped_us =
      static_cast<uint64_t>((Clock::now() - op.stopped_since()) / std::chrono::microseconds(1));
  fault_point("reclaim.released");
  return result;
}

void FaultServer::Impl::serve(const std::shared_ptr<ServedSandbox>& sandbox) {
  {
    const std::lock_guard lock(mutex);
    sandboxes[sandbox->file()->path()] = sandbox;
  }
  for (const auto& m : sandbox->memories()) watch(sandbox, m);
}

FaultServer::FaultServer(size_t threads) : impl_(std::make_unique<Impl>()) {
  keeper::start();
  impl_->start(threads);
}
FaultServer::~FaultServer() { close(); }

int FaultServer::event_fd() const { return impl_->event_signal.get(); }

std::vector<std::pair<std::string, std::string>> FaultServer::take_events() {
  uint64_t count = 0;
  (void)!read(impl_->event_signal.get(), &count, sizeof count);
  const std::lock_guard lock(impl_->events_mutex);
  std::vector<std::pair<std::string, std::string>> out(impl_->events.begin(), impl_->events.end());
  impl_->events.clear();
  return out;
}

std::shared_ptr<LiveSandbox> FaultServer::evict(const MemoryImage& image, std::shared_ptr<SandboxFile> file,
                                                std::shared_ptr<BaseSet> bases, const EvictOptions& options,
                                                const std::atomic<bool>* cancelled) {
  if (impl_->closed) throw Error(Code::invalid_argument, "the fault server is closed");
  std::map<pid_t, OwnUffd> known;
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->sandboxes.contains(file->path()))
      throw Error(Code::already_exists, "the sandbox is dormant already", file->path());
    known = impl_->own_uffds;
  }
  auto sandbox = std::make_shared<ServedSandbox>(*impl_, file, std::move(bases));
  sandbox->set_wake_rule(options.wake);  // it may be touched as soon as it is let go
  EvictOp op(image, *file, options, known, cancelled);
  const auto remember = [&] {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->own_uffds.size() > kMaxProcesses * 16) impl_->own_uffds.clear();
    for (const auto& [pid, own] : op.own_uffds()) impl_->own_uffds[pid] = own;
  };
  try {
    // Served from before the first thread runs again until the last page is back.
    run_as_tracer([&] {
      op.run([&] {
        for (auto& memory : op.take_memories()) sandbox->add_memory(std::move(memory));
        sandbox->set_held(options.hold_frozen);
        sandbox->set_evict_result(op.result());
        impl_->serve(sandbox);
      });
    });
  } catch (...) {
    remember();
    throw;
  }
  const auto stopped = std::chrono::steady_clock::now() - op.stopped_since();
  fault_point("evict.released");
  remember();
  sandbox->set_stopped_us(static_cast<uint64_t>(stopped / std::chrono::microseconds(1)));
  sandbox->wake_if_whole();
  return sandbox;
}

std::shared_ptr<LiveSandbox> FaultServer::adopt(std::shared_ptr<SandboxFile> file,
                                                std::shared_ptr<BaseSet> bases, WakeRule wake) {
  if (impl_->closed) throw Error(Code::invalid_argument, "the fault server is closed");
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->sandboxes.contains(file->path()))
      throw Error(Code::already_exists, "the sandbox is served already", file->path());
  }
  auto sandbox = std::make_shared<ServedSandbox>(*impl_, file, std::move(bases));
  sandbox->set_wake_rule(std::move(wake));
  AdoptOp op(*file);
  op.run();
  for (auto& memory : op.take_memories()) sandbox->add_memory(std::move(memory));
  sandbox->set_held(op.held());
  sandbox->set_evict_result(op.result());
  impl_->serve(sandbox);
  for (auto& child : op.take_children()) sandbox->add_child(std::move(child));
  sandbox->wake_if_whole();
  return sandbox;
}

void FaultServer::release_gone() { keeper::release_gone(); }

FaultServerStats FaultServer::stats() const {
  FaultServerStats s;
  const std::lock_guard lock(impl_->mutex);
  s.sandboxes = impl_->sandboxes.size();
  s.descriptors = impl_->watched.size();
  s.faults = impl_->fault_wakes;
  s.events = impl_->events_emitted;
  s.restores = impl_->restores;
  return s;
}

void FaultServer::close() {
  if (impl_->closed) return;
  impl_->closed = true;
  std::map<std::string, std::shared_ptr<ServedSandbox>> sandboxes;
  {
    const std::lock_guard lock(impl_->mutex);
    sandboxes = impl_->sandboxes;
  }
  // In an orderly end the keeper may be ended with us (a container): what only it would hold is done first.
  const auto deadline = Clock::now() + kChildrenPatience;
  for (const auto& [path, sandbox] : sandboxes)
    while (sandbox->fills_children() && Clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  for (const auto& [path, sandbox] : sandboxes) sandbox->detach();
  {
    const std::lock_guard lock(impl_->jobs_mutex);
    impl_->closing = true;
    impl_->urgent_jobs.jobs.clear();
    impl_->jobs.jobs.clear();
    impl_->later_jobs.clear();
  }
  impl_->later_wake.notify_all();
  impl_->urgent_jobs.wake.notify_all();
  impl_->jobs.wake.notify_all();
  signal_eventfd(impl_->stop.get());
  for (auto& t : impl_->threads) t.join();
  const std::lock_guard lock(impl_->later_mutex);
  impl_->later.clear();
}

}  // namespace medes
