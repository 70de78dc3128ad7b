// Injected system calls, and what must be known of a thread to leave its kernel-visible memory alone.
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "common/error.h"
#include "common/fault_point.h"
#include "live/ptrace_calls.h"
#include "live/signal_frame.h"
#include "live/tracee.h"
#include "memory/proc.h"
#include "store/sandbox_file.h"

namespace medes {
namespace {

constexpr uint64_t kPageMask = kPageBytes - 1;
constexpr uint64_t kRedZoneBytes = 128;
constexpr uint64_t kUserCode64 = 0x33;  // the code segment of 64-bit user code
constexpr size_t kMaxXstateBytes = 64u << 10;
constexpr int kMaxRobustEntries = 64;
constexpr uint64_t kFarEndBytes = 32u << 10;

std::string thread_object(const Tracee& t) { return "thread " + std::to_string(t.tid); }

AddressRange pages_of(uint64_t begin, uint64_t end) {
  return {begin & ~kPageMask, (end + kPageMask) & ~kPageMask};
}

bool read_memory(pid_t pid, uint64_t address, void* out, size_t length) {
  iovec local{out, length}, remote{reinterpret_cast<void*>(address), length};
  return process_vm_readv(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(length);
}

bool write_memory(pid_t pid, uint64_t address, const void* data, size_t length) {
  iovec local{const_cast<void*>(data), length}, remote{reinterpret_cast<void*>(address), length};
  return process_vm_writev(pid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(length);
}

// glibc keeps the robust list head inside the thread control block, and clear_child_tid 16 bytes before it.
constexpr uint64_t kThreadBlockBytes = 0x900;

void add_robust_list(const Tracee& t, std::vector<AddressRange>& out) {
  uint64_t head = 0;
  size_t head_bytes = 0;
  if (syscall(SYS_get_robust_list, t.tid, &head, &head_bytes) != 0 || head == 0) return;
  out.push_back(pages_of(head, head + 24));
  uint64_t entry = 0;
  if (!read_memory(t.pid, head, &entry, sizeof entry)) return;
  for (int i = 0; i < kMaxRobustEntries && (entry & ~1ull) != head && entry != 0; ++i) {
    const uint64_t at = entry & ~1ull;
    out.push_back(pages_of(at - 64, at + 64));  // the mutex around its list entry
    if (!read_memory(t.pid, at, &entry, sizeof entry)) return;
  }
}

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

std::vector<std::byte> xstate_of(const Tracee& t) {
  std::vector<std::byte> state(kMaxXstateBytes);
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

bool has_signal_waiting(const Tracee& t) {
  const std::string status =
      read_proc_file("/proc/" + std::to_string(t.pid) + "/task/" + std::to_string(t.tid) + "/status", t.pid);
  const auto mask = [&](const char* name) { return field_of(status, name, 16); };
  return ((mask("SigPnd") | mask("ShdPnd")) & ~mask("SigBlk")) != 0;
}

// Of a killed process the kernel reports the first thread only when all others have been collected, which
// here happens when the tracer ends: its death has to be looked for.
bool has_ended(const Tracee& t) {
  const char state = read_stat(t.tid).state;  // throws process_gone
  return state == 'Z' || state == 'X';
}

// Next stop of the thread; throws process_gone when it ends instead. It asks again and again rather than
// sleep: injected calls take microseconds.
int wait_for_stop(const Tracee& t, const std::function<void()>& while_waiting) {
  constexpr uint64_t kAsksPerLook = 256;
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
  }
}

}  // namespace

user_regs_struct registers_of(const Tracee& t) {
  user_regs_struct r{};
  iovec io{&r, sizeof r};
  trace::require(PTRACE_GETREGSET, t.tid, trace::kRegsetGeneral, reinterpret_cast<uint64_t>(&io),
                 "cannot read its registers");
  return r;
}

void add_kernel_ranges(const Tracee& t, std::vector<AddressRange>& out) {
  const user_regs_struct r = registers_of(t);
  out.push_back(pages_of(r.rsp - kPageBytes, r.rsp + kPageBytes));
  if (r.fs_base != 0) out.push_back(pages_of(r.fs_base - 256, r.fs_base + kThreadBlockBytes));
  trace::RseqConfig config{};
  if (trace::request(trace::kGetRseq, t.tid, sizeof config, reinterpret_cast<uint64_t>(&config)) >= 0 &&
      config.pointer != 0)
    out.push_back(pages_of(config.pointer, config.pointer + std::max<uint32_t>(config.size, 32)));
  add_robust_list(t, out);
  if (static_cast<long>(r.orig_rax) < 0) return;
  // It sleeps in a system call that begins anew when the thread is let go: what its arguments point at (a
  // futex word, an array of poll descriptors) is read then, and would wake the sandbox at once.
  for (uint64_t argument : {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9})
    if (argument >= kPageBytes) out.push_back(pages_of(argument, argument + 1));
}

// epoll_wait is the one call that a stop ends with EINTR. Without a timeout it can simply be made again,
// and the program (most servers sleep here) neither notices nor wakes.
void restart_epoll_wait(const Tracee& t) {
  constexpr long kEpollWait = 232, kEpollPwait = 281;
  user_regs_struct r = registers_of(t);
  const long number = static_cast<long>(r.orig_rax);
  if ((number != kEpollWait && number != kEpollPwait) || static_cast<long>(r.rax) != -EINTR) return;
  if (static_cast<int>(r.r10) != -1) return;
  if (has_signal_waiting(t)) return;  // then EINTR is what the program must see
  r.rax = r.orig_rax;
  r.rip -= 2;
  r.orig_rax = static_cast<uint64_t>(-1);
  set_registers(t, r);
}

FrameRoom frame_room(std::span<const Vma> vmas, std::span<const Tracee> threads) {
  const auto stack =
      std::find_if(vmas.begin(), vmas.end(), [](const Vma& v) { return v.kind == VmaKind::stack; });
  if (stack == vmas.end() || threads.empty())
    throw Error(Code::unsupported, "the process has no main stack to run injected calls on",
                threads.empty() ? "" : "pid " + std::to_string(threads[0].pid));
  // Below the lowest stack pointer in it everything is dead. A process whose main thread runs elsewhere
  // (a goroutine, a fork out of another thread) uses the far end, which only a deep stack ever reached.
  uint64_t lowest = 0;
  for (const auto& t : threads) {
    const uint64_t sp = registers_of(t).rsp;
    if (sp >= stack->begin && sp < stack->end) lowest = lowest == 0 ? sp : std::min(lowest, sp);
  }
  if (lowest != 0) return {stack->begin, lowest - kRedZoneBytes};
  return {stack->begin, stack->begin + std::min<uint64_t>(kFarEndBytes, (stack->end - stack->begin) / 2)};
}

Injector::Injector(const Tracee& thread, const Gadgets& gadgets, uint64_t frame_bottom, uint64_t frame_top)
    : thread_(thread), gadgets_(gadgets), saved_(registers_of(thread)) {
  if (saved_.cs != kUserCode64)
    throw Error(Code::unsupported, "the thread runs 32-bit code", thread_object(thread));
  trace::require(trace::kGetSigmask, thread.tid, sizeof saved_mask_, reinterpret_cast<uint64_t>(&saved_mask_),
                 "cannot read its signal mask");
  const auto xstate = xstate_of(thread);
  const uint64_t needed = signal_frame_bytes(xstate.size()) + kScratchBytes + kPageBytes;
  if (frame_top < frame_bottom || frame_top - frame_bottom < needed)
    throw Error(Code::busy, "its stack is nearly full", thread_object(thread), "try again later");
  abort_restartable_sequence(thread, saved_);
  const SignalFrame frame = make_signal_frame(frame_top, gadgets.sigreturn, saved_, saved_mask_, xstate);
  if (!write_memory(thread.pid, frame.address, frame.bytes.data(), frame.bytes.size()))
    throw Error(Code::busy, "its stack cannot be written", thread_object(thread), "try again later");
  frame_address_ = frame.address;
  // The scratch area lies below the frame, out of reach of what `ret` and rt_sigreturn read.
  frame_range_ = {(frame.address - kScratchBytes) & ~7ull, frame_top};
  // It must be there before the stack is registered: a write to it would wait for a page that nobody serves
  // yet.
  const std::vector<std::byte> nothing(kScratchBytes);
  write_scratch(0, nothing.data(), nothing.size());
}

Injector::~Injector() {
  try {
    finish();
  } catch (...) {  // NOLINT: the thread is gone, which later steps find out by themselves
  }
}

void Injector::write_scratch(size_t offset, const void* data, size_t length) {
  if (offset + length > kScratchBytes || !write_memory(thread_.pid, scratch() + offset, data, length))
    throw Error(Code::internal, "scratch memory cannot be written", thread_object(thread_));
}

void Injector::read_scratch(size_t offset, void* data, size_t length) {
  if (offset + length > kScratchBytes || !read_memory(thread_.pid, scratch() + offset, data, length))
    throw Error(Code::internal, "scratch memory cannot be read", thread_object(thread_));
}

namespace {

constexpr uint8_t kEntry = 1, kExit = 2;

void set_call(user_regs_struct& r, std::span<const uint64_t> arguments) {
  uint64_t* const slots[] = {reinterpret_cast<uint64_t*>(&r.rdi), reinterpret_cast<uint64_t*>(&r.rsi),
                             reinterpret_cast<uint64_t*>(&r.rdx), reinterpret_cast<uint64_t*>(&r.r10),
                             reinterpret_cast<uint64_t*>(&r.r8),  reinterpret_cast<uint64_t*>(&r.r9)};
  for (size_t i = 0; i < std::size(slots); ++i) *slots[i] = i < arguments.size() ? arguments[i] : 0;
}

}  // namespace

// Up to where the kernel has the call's number and arguments, and has done nothing yet.
void Injector::enter(long number, std::span<const uint64_t> arguments) {
  user_regs_struct r = saved_;
  r.rip = gadgets_.syscall_ret;
  r.rsp = frame_address_;
  r.rax = static_cast<uint64_t>(number);
  r.orig_rax = static_cast<uint64_t>(-1);
  r.eflags &= ~0x400ull;  // direction flag as the ABI has it
  set_call(r, arguments);
  // From here on the thread finds back through its frame, whenever we die; signals are held off only after
  // that, because the frame is what gives them back.
  set_registers(thread_, r);
  fault_point("inject.registers");
  if (!begun_) set_signal_mask(thread_, ~0ull);
  begun_ = true;
  fault_point("inject.mask");
  resume_until_syscall_stop(kEntry, nullptr);
  fault_point("inject.entered");
}

long Injector::call(long number, std::span<const uint64_t> arguments,
                    const std::function<void()>& while_waiting) {
  enter(number, arguments);
  resume_until_syscall_stop(kExit, while_waiting);
  fault_point("inject.returned");
  return static_cast<long>(registers_of(thread_).rax);
}

// The signal can only be sent when the thread is past the point where it would take it itself, and the call
// must not be under way before: so it enters a harmless one, which becomes the other on the spot.
long Injector::call_alone(long number, std::span<const uint64_t> arguments,
                          const std::function<void()>& while_waiting) {
  if (stop_note_ == nullptr) return call(number, arguments, while_waiting);
  enter(SYS_getppid, {});
  std::atomic_ref(*stop_note_).store(kMayBeStopped, std::memory_order_release);
  fault_point("inject.noted");
  stop_waits_ = kill(thread_.pid, SIGSTOP) == 0;
  fault_point("inject.stop_waits");
  user_regs_struct r = registers_of(thread_);
  r.orig_rax = static_cast<uint64_t>(number);
  set_call(r, arguments);
  set_registers(thread_, r);
  fault_point("inject.changed");
  resume_until_syscall_stop(kExit, while_waiting);
  fault_point("inject.returned");
  return static_cast<long>(registers_of(thread_).rax);
}

// Our thread is the only one that runs: it gets the signal on its way into the next call, and is passed by.
void Injector::take_stop_back() {
  if (!stop_waits_) return;
  stop_waits_ = false;
  (void)call(SYS_getppid, {});
  std::atomic_ref(*stop_note_).store(kNotStopped, std::memory_order_release);
  fault_point("inject.stop_taken_back");
}

void Injector::resume_until_syscall_stop(uint8_t wanted, const std::function<void()>& while_waiting) {
  for (;;) {
    trace::require(PTRACE_SYSCALL, thread_.tid, 0, 0, "cannot resume a thread");
    const int status = wait_for_stop(thread_, while_waiting);
    if (WSTOPSIG(status) != trace::kSyscallStopSignal) continue;  // a group stop on its way: passed by
    struct {
      uint8_t op, pad[3];
      uint32_t arch;
      uint64_t instruction_pointer, stack_pointer, more[8];
    } info{};
    trace::require(trace::kGetSyscallInfo, thread_.tid, sizeof info, reinterpret_cast<uint64_t>(&info),
                   "cannot tell entry from exit of a call");
    if (info.op == wanted) return;
  }
}

void Injector::finish() {
  if (finished_) return;
  finished_ = true;
  take_stop_back();
  if (!begun_) return set_registers(thread_, saved_);  // an aborted sequence is begun anew also then
  // Back into the kind of stop the thread was found in: only there does the kernel restart an interrupted
  // call with its remaining time. It never reaches user code on the way.
  user_regs_struct r = registers_of(thread_);
  r.orig_rax = static_cast<uint64_t>(-1);
  set_registers(thread_, r);
  trace::require(trace::kInterrupt, thread_.tid, 0, 0, "cannot interrupt a thread");
  for (;;) {
    trace::require(PTRACE_CONT, thread_.tid, 0, 0, "cannot resume a thread");
    if (wait_for_stop(thread_, nullptr) >> 16 == trace::kEventStop) break;
  }
  fault_point("inject.stopped");
  set_signal_mask(thread_, saved_mask_);
  fault_point("inject.mask_back");
  set_registers(thread_, saved_);
  fault_point("inject.registers_back");
}

}  // namespace medes
