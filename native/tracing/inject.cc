// Injected system calls.
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <optional>

#include "common/error.h"
#include "common/fault_point.h"
#include "procfs/proc.h"
#include "store/sandbox_file.h"
#include "tracing/frozen.h"
#include "tracing/process_bytes.h"
#include "tracing/ptrace_calls.h"
#include "tracing/signal_frame.h"
#include "tracing/system_calls.h"
#include "tracing/tracee.h"

namespace medes {
namespace {

constexpr uint8_t kEntry = 1, kExit = 2;  // of a call
// How long a thread that is interrupted may take to stop: one that a processor limit of 1 % holds back does.
constexpr std::chrono::milliseconds kInterruptTimeout{1000};
constexpr size_t kMaxXstateBytes = 64u << 10;

std::string thread_object(const Tracee& t) { return "thread " + std::to_string(t.tid); }

// A thread stopped inside a restartable sequence must begin it anew; the kernel does so on its own way back
// to user mode, but an injected call would make it forget the sequence first.
void abort_restartable_sequence(const Tracee& t, user_regs_struct& r) {
  trace::RseqConfig config{};
  if (trace::request(trace::kGetRseq, t.tid, sizeof config, reinterpret_cast<uint64_t>(&config)) < 0) return;
  uint64_t descriptor = 0;
  if (config.pointer == 0 || !read_memory(t.pid, config.pointer + 8, &descriptor, sizeof descriptor) ||
      descriptor == 0)
    return;
  struct {
    uint32_t version, flags;
    uint64_t start, length, abort;
  } sequence{};
  if (!read_memory(t.pid, descriptor, &sequence, sizeof sequence)) return;
  if (r.rip - sequence.start < sequence.length) {
    r.rip = sequence.abort;
    const uint64_t none = 0;
    (void)write_memory(t.pid, config.pointer + 8, &none, sizeof none);
  }
}

// With syscall user dispatch (Wine) the kernel hands a thread's calls to the program, an injected one as
// well: it would be a SIGSYS, and the program's handler for that lost, since signals are blocked.
void require_calls_reach_kernel(const Tracee& t, uint64_t instruction) {
  trace::DispatchConfig config{};
  if (trace::request(trace::kGetDispatch, t.tid, sizeof config, reinterpret_cast<uint64_t>(&config)) < 0 ||
      config.on == 0 || instruction - config.offset < config.length)
    return;
  uint8_t blocks = 1;
  if (config.selector != 0) (void)read_memory(t.pid, config.selector, &blocks, sizeof blocks);
  if (blocks == 0) return;
  throw Error(Code::busy, "its system calls go to the program itself now (syscall user dispatch)",
              thread_object(t), "try again when the sandbox is idle");
}

WipedBytes xstate_of(const Tracee& t) {
  WipedBytes state(kMaxXstateBytes);
  iovec io{state.data(), state.size()};
  trace::require(PTRACE_GETREGSET, t.tid, trace::kRegsetXstate, reinterpret_cast<uint64_t>(&io),
                 "cannot read its floating point state");
  state.resize(io.iov_len);
  return state;
}

void set_registers(const Tracee& t, user_regs_struct r) {
  iovec io{&r, sizeof r};
  trace::require(PTRACE_SETREGSET, t.tid, trace::kRegsetGeneral, reinterpret_cast<uint64_t>(&io),
                 "cannot set its registers");
}

void set_signal_mask(const Tracee& t, uint64_t mask) {
  trace::require(trace::kSetSigmask, t.tid, sizeof mask, reinterpret_cast<uint64_t>(&mask),
                 "cannot set its signal mask");
}

// Of a killed process the kernel reports the first thread only when all others have been collected, which
// here happens when the tracer ends: its death has to be looked for.
bool has_ended(const Tracee& t) {
  const char state = read_stat(t.tid).state;  // throws process_gone
  return state == 'Z' || state == 'X';
}

// Next stop of the thread; nothing when it is late, or its cgroup is frozen (a deadline of none asks for
// neither), or it was `abandoned`. Throws process_gone when it ends instead. It asks again and again rather
// than sleep, since injected calls take microseconds; for a while.
std::optional<int> wait_for_stop(const Tracee& t, std::optional<TimePoint> deadline,
                                 const std::function<void()>& while_waiting,
                                 const std::atomic<bool>* abandoned = nullptr) {
  constexpr uint64_t kAsksPerLook = 256, kAsksAwake = 32 * kAsksPerLook;
  constexpr std::chrono::milliseconds kFrozenLook{20};
  constexpr std::chrono::seconds kPatience{1};  // then it is frozen, and may be for days
  constexpr timespec kPause{0, 200'000}, kLongPause{0, 5'000'000};
  const auto begin = std::chrono::steady_clock::now();
  auto look = begin + kFrozenLook;
  for (uint64_t asked = 1;; ++asked) {
    int status = 0;
    const pid_t got = waitpid(t.tid, &status, __WALL | __WNOTHREAD | WNOHANG);
    if (got < 0 && errno == EINTR) continue;
    const bool ended = got == 0 ? asked % kAsksPerLook == 0 && has_ended(t) : got < 0 || !WIFSTOPPED(status);
    if (ended) throw Error(Code::process_gone, "the process was killed", "pid " + std::to_string(t.pid));
    if (got != 0) return status;
    if (while_waiting)
      while_waiting();
    else
      sched_yield();
    const bool drowsy = asked > (while_waiting ? 64 : 1) * kAsksAwake;
    if (drowsy) {
      if (abandoned != nullptr && abandoned->load(std::memory_order_acquire)) return std::nullopt;
      nanosleep(std::chrono::steady_clock::now() > begin + kPatience ? &kLongPause : &kPause, nullptr);
    }
    if (!deadline || (!drowsy && asked % kAsksPerLook != 0)) continue;
    const auto now = std::chrono::steady_clock::now();
    if (now > *deadline) return std::nullopt;
    if (now < look) continue;
    if (!frozen_cgroup_of(t.pid).empty()) return std::nullopt;
    look = now + kFrozenLook;
  }
}

Error given_up(const Tracee& t) {
  if (const auto path = frozen_cgroup_of(t.pid); !path.empty()) return frozen_error(t.pid, path);
  return Error(Code::busy, "it does not get to run a call in time", thread_object(t),
               "try again when it gets more processor time");
}

}  // namespace

user_regs_struct registers_of(const Tracee& t) {
  user_regs_struct r{};
  iovec io{&r, sizeof r};
  trace::require(PTRACE_GETREGSET, t.tid, trace::kRegsetGeneral, reinterpret_cast<uint64_t>(&io),
                 "cannot read its registers");
  return r;
}

uint64_t Injector::frame_bytes(const Tracee& thread) { return signal_frame_bytes(xstate_of(thread).size()); }

Injector::Injector(const Tracee& thread, const Gadgets& gadgets, const FramePlace& place, TimePoint deadline,
                   const std::atomic<bool>* abandoned)
    : thread_(thread),
      gadgets_(gadgets),
      saved_(registers_of(thread)),
      deadline_(deadline),
      abandoned_(abandoned) {
  if (saved_.cs != kUserCode64)
    throw Error(Code::unsupported, "the thread runs 32-bit code", thread_object(thread));
  require_calls_reach_kernel(thread, gadgets.syscall_ret);
  trace::require(trace::kGetSigmask, thread.tid, sizeof saved_mask_, reinterpret_cast<uint64_t>(&saved_mask_),
                 "cannot read its signal mask");
  xstate_ = xstate_of(thread);
  abort_restartable_sequence(thread, saved_);
  move_to(place);
}

void Injector::move_to(const FramePlace& place) {
  const SignalFrame frame = make_signal_frame(place.top, gadgets_.sigreturn, saved_, saved_mask_, xstate_);
  if (frame.address < place.bottom || frame.address > place.top)
    throw Error(Code::internal, "a signal frame does not fit", thread_object(thread_));
  if (!write_memory(thread_.pid, frame.address, frame.bytes.data(), frame.bytes.size()))
    throw Error(Code::busy, "the place for a signal frame cannot be written", thread_object(thread_),
                "try again later");
  place_ = place;
  frame_address_ = frame.address;
}

Injector::~Injector() {
  try {
    finish();
  } catch (...) {  // NOLINT: the thread is gone, which later steps find out by themselves
  }
}

void Injector::write_scratch(size_t offset, const void* data, size_t length) {
  if (scratch() == 0 || offset + length > kScratchBytes ||
      !write_memory(thread_.pid, scratch() + offset, data, length))
    throw Error(Code::internal, "scratch memory cannot be written", thread_object(thread_));
}

void Injector::read_scratch(size_t offset, void* data, size_t length) {
  if (scratch() == 0 || offset + length > kScratchBytes ||
      !read_memory(thread_.pid, scratch() + offset, data, length))
    throw Error(Code::internal, "scratch memory cannot be read", thread_object(thread_));
}

// Up to where the kernel has a call and has done nothing yet. It is a harmless one, which becomes the wanted
// one there: a thread that cannot get this far is left with nothing worse to do.
void Injector::enter() {
  if (finished_) throw given_up(thread_);
  user_regs_struct r = saved_;
  r.rip = gadgets_.syscall_ret;
  r.rsp = frame_address_;
  r.rax = SYS_getppid;
  r.orig_rax = static_cast<uint64_t>(-1);
  r.eflags &= ~0x400ull;  // direction flag as the ABI has it
  // From here on the thread finds back through its frame, whenever we die; signals are held off only after
  // that, because the frame is what gives them back.
  set_registers(thread_, r);
  fault_point("inject.registers");
  if (!begun_) set_signal_mask(thread_, ~0ull);
  begun_ = true;
  fault_point("inject.mask");
  resume_until_entry();
  fault_point("inject.entered");
}

long Injector::leave(long number, std::span<const uint64_t> arguments,
                     const std::function<void()>& while_waiting) {
  user_regs_struct r = registers_of(thread_);
  r.orig_rax = static_cast<uint64_t>(number);
  for (int i = 0; i < 6; ++i)
    set_argument(r, i, static_cast<size_t>(i) < arguments.size() ? arguments[static_cast<size_t>(i)] : 0);
  set_registers(thread_, r);
  fault_point("inject.changed");
  // In the kernel no signal holds it: it ends, as late as it gets its processor time. (A freezer of cgroup v1
  // may still catch it before it is there, and then it ends after the thaw; it cannot be called off.)
  for (;;) {
    trace::require(PTRACE_SYSCALL, thread_.tid, 0, 0, "cannot resume a thread");
    const auto status = wait_for_stop(thread_, std::nullopt, while_waiting, abandoned_);
    if (!status) abandon();
    if (stop_of(*status) == kExit) break;
  }
  fault_point("inject.returned");
  return static_cast<long>(registers_of(thread_).rax);
}

long Injector::call(long number, std::span<const uint64_t> arguments,
                    const std::function<void()>& while_waiting) {
  enter();
  return leave(number, arguments, while_waiting);
}

// The signal can only be sent when the thread is past the point where it would take it itself.
long Injector::call_alone(long number, std::span<const uint64_t> arguments,
                          const std::function<void()>& while_waiting) {
  enter();
  if (stop_note_ != nullptr) {
    std::atomic_ref(*stop_note_).store(kMayBeStopped, std::memory_order_release);
    fault_point("inject.noted");
    stop_waits_ = kill(thread_.pid, SIGSTOP) == 0;
    fault_point("inject.stop_waits");
  }
  return leave(number, arguments, while_waiting);
}

// Our thread is the only one that runs: it gets the signal on its way into the next call, and is passed by.
// One that does not get there has the signal taken off it.
void Injector::take_stop_back() {
  if (!stop_waits_) return;
  stop_waits_ = false;
  try {
    (void)call(SYS_getppid, {});
  } catch (const Error& e) {
    if (e.code != Code::busy) throw;
    (void)kill(thread_.pid, SIGCONT);
  }
  std::atomic_ref(*stop_note_).store(kNotStopped, std::memory_order_release);
  fault_point("inject.stop_taken_back");
}

// 0: not of a call.
uint8_t Injector::stop_of(int status) const {
  if (WSTOPSIG(status) != trace::kSyscallStopSignal) return 0;  // a group stop on its way: passed by
  struct {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t instruction_pointer, stack_pointer, more[8];
  } info{};
  trace::require(trace::kGetSyscallInfo, thread_.tid, sizeof info, reinterpret_cast<uint64_t>(&info),
                 "cannot tell entry from exit of a call");
  return info.op;
}

void Injector::resume_until_entry() {
  for (;;) {
    trace::require(PTRACE_SYSCALL, thread_.tid, 0, 0, "cannot resume a thread");
    const auto status = wait_for_stop(thread_, deadline_, nullptr);
    if (!status) interrupt_and_throw();
    if (stop_of(*status) == kEntry) return;
  }
}

// The thread was let run and did not get to its call: it is stopped where it is and put back. Where a freezer
// of cgroup v1 holds it, it cannot be stopped either; it will make the harmless call when it is thawed, and
// find back through its frame.
void Injector::interrupt_and_throw() {
  finished_ = true;
  const Error why = given_up(thread_);
  const bool interrupted = trace::request(trace::kInterrupt, thread_.tid, 0, 0) >= 0;
  for (const auto deadline = std::chrono::steady_clock::now() + kInterruptTimeout; interrupted;) {
    const auto status = wait_for_interrupted(deadline);
    if (!status) break;
    if (*status >> 16 == trace::kEventStop) {
      put_back();
      break;
    }
    // It ran on meanwhile, and is let through a call that is none.
    user_regs_struct r = registers_of(thread_);
    if (stop_of(*status) == kEntry) r.orig_rax = static_cast<uint64_t>(-1), set_registers(thread_, r);
    trace::require(PTRACE_SYSCALL, thread_.tid, 0, 0, "cannot resume a thread");
  }
  if (stop_waits_) {
    stop_waits_ = false;
    (void)kill(thread_.pid, SIGCONT);
    std::atomic_ref(*stop_note_).store(kNotStopped, std::memory_order_release);
  }
  throw why;
}

// Nothing is undone: the call is under way, and the thread finds back through its frame.
void Injector::abandon() {
  finished_ = true;
  stop_waits_ = false;
  throw Error(Code::cancelled, "left to the next agent in the middle of a call", thread_object(thread_));
}

// A v2 freezer lets it stop; so it is not asked after.
std::optional<int> Injector::wait_for_interrupted(TimePoint deadline) const {
  constexpr timespec kPause{0, 100'000};
  for (unsigned asked = 0;; ++asked) {
    int status = 0;
    const pid_t got = waitpid(thread_.tid, &status, __WALL | __WNOTHREAD | WNOHANG);
    if (got < 0 && errno == EINTR) continue;
    if (got != 0 && (got < 0 || !WIFSTOPPED(status)))
      throw Error(Code::process_gone, "the process was killed", "pid " + std::to_string(thread_.pid));
    if (got != 0) return status;
    if (asked % 64 == 63 && has_ended(thread_))
      throw Error(Code::process_gone, "the process was killed", "pid " + std::to_string(thread_.pid));
    if (std::chrono::steady_clock::now() > deadline) return std::nullopt;
    if (asked < 1000)
      sched_yield();
    else
      nanosleep(&kPause, nullptr);
  }
}

void Injector::put_back() {
  fault_point("inject.stopped");
  set_signal_mask(thread_, saved_mask_);
  fault_point("inject.mask_back");
  set_registers(thread_, saved_);
  fault_point("inject.registers_back");
}

void Injector::finish() {
  if (finished_) return;
  take_stop_back();
  if (finished_) return;  // it was put back on the way
  finished_ = true;
  if (!begun_) return set_registers(thread_, saved_);  // an aborted sequence is begun anew also then
  // Back into the kind of stop the thread was found in: only there does the kernel restart an interrupted
  // call with its remaining time. It never reaches user code on the way.
  user_regs_struct r = registers_of(thread_);
  r.orig_rax = static_cast<uint64_t>(-1);
  set_registers(thread_, r);
  trace::require(trace::kInterrupt, thread_.tid, 0, 0, "cannot interrupt a thread");
  const auto deadline = std::chrono::steady_clock::now() + kInterruptTimeout;
  for (;;) {
    trace::require(PTRACE_CONT, thread_.tid, 0, 0, "cannot resume a thread");
    const auto status = wait_for_interrupted(deadline);
    if (!status) return;  // a v1 freezer: it finds back through its frame when it is thawed
    if (*status >> 16 == trace::kEventStop) break;
  }
  put_back();
}

}  // namespace medes
