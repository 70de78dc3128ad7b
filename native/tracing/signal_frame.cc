#include "tracing/signal_frame.h"

#include <sys/syscall.h>

#include <cerrno>
#include <csignal>
#include <cstring>

namespace medes {
namespace {

// The x86-64 kernel interface (asm/sigcontext.h, asm/ucontext.h), spelt out because the C library's own
// ucontext_t differs in the size of its signal mask.
struct Sigcontext {
  uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
  uint64_t di, si, bp, bx, dx, ax, cx, sp, ip, flags;
  uint16_t cs, gs, fs, ss;
  uint64_t err, trapno, oldmask, cr2, fpstate;
  uint64_t reserved[8];
};
static_assert(sizeof(Sigcontext) == 256);

struct KernelUcontext {
  uint64_t flags, link;
  uint64_t stack_sp;
  int32_t stack_flags, pad;
  uint64_t stack_size;
  Sigcontext context;
  uint64_t mask;
};
static_assert(sizeof(KernelUcontext) == 304);

struct Frame {
  uint64_t return_to;
  KernelUcontext ucontext;
  uint8_t siginfo[128];
};

// Tells the kernel how much floating point state follows (bytes 464… of the legacy area).
struct FpxSoftwareBytes {
  uint32_t magic1, extended_size;
  uint64_t xfeatures;
  uint32_t xstate_size, pad[7];
};
static_assert(sizeof(FpxSoftwareBytes) == 48);
constexpr size_t kSoftwareBytesAt = 464;
constexpr uint32_t kMagic1 = 0x46505853, kMagic2 = 0x46505845;

constexpr uint64_t kFlagFpXstate = 1, kFlagSigcontextSs = 2, kFlagStrictSs = 4;
// rt_sigreturn also sets the alternate stack; a mode that does not exist makes it leave that alone.
constexpr int32_t kNoSuchStackMode = 0x7f;
constexpr long kRestartSys = 512, kRestartNoIntr = 513, kRestartNoHand = 514, kRestartBlock = 516;

constexpr uint64_t align_down(uint64_t v, uint64_t to) { return v & ~(to - 1); }

void apply_restart(user_regs_struct& r) {
  if (static_cast<long>(r.orig_rax) < 0) return;  // it was not in a system call
  switch (static_cast<long>(r.rax)) {             // anything at all, where a program set it itself
    case -kRestartSys:
    case -kRestartNoIntr:
    case -kRestartNoHand: break;
    case -kRestartBlock:
      // What was left of its time is known to the kernel, which forgets it on the way back: all of it again.
      if (static_cast<long>(r.orig_rax) != SYS_restart_syscall) break;
      r.rax = static_cast<uint64_t>(-EINTR);
      return;
    default: return;
  }
  r.rax = r.orig_rax;
  r.rip -= 2;  // back onto the `syscall` instruction
}

}  // namespace

size_t signal_frame_bytes(size_t xstate_bytes) {
  return sizeof(Frame) + xstate_bytes + sizeof kMagic2 + 64 + 16;
}

SignalFrame make_signal_frame(uint64_t top, uint64_t return_to, const user_regs_struct& registers,
                              uint64_t signal_mask, std::span<const std::byte> xstate) {
  user_regs_struct r = registers;
  apply_restart(r);
  const uint64_t fpstate = align_down(top - xstate.size() - sizeof kMagic2, 64);
  SignalFrame out;
  out.address = align_down(fpstate - sizeof(Frame), 16) - 8;  // as a signal handler would find it
  out.bytes.resize(top - out.address);

  Frame frame{};
  frame.return_to = return_to;
  KernelUcontext& uc = frame.ucontext;
  uc.flags = kFlagFpXstate | kFlagSigcontextSs | kFlagStrictSs;
  uc.stack_flags = kNoSuchStackMode;
  uc.mask = signal_mask;
  Sigcontext& c = uc.context;
  c.r8 = r.r8, c.r9 = r.r9, c.r10 = r.r10, c.r11 = r.r11;
  c.r12 = r.r12, c.r13 = r.r13, c.r14 = r.r14, c.r15 = r.r15;
  c.di = r.rdi, c.si = r.rsi, c.bp = r.rbp, c.bx = r.rbx, c.dx = r.rdx, c.ax = r.rax, c.cx = r.rcx;
  c.sp = r.rsp, c.ip = r.rip, c.flags = r.eflags;
  c.cs = static_cast<uint16_t>(r.cs), c.ss = static_cast<uint16_t>(r.ss);
  c.fpstate = fpstate;
  std::memcpy(out.bytes.data(), &frame, sizeof frame);

  std::byte* fp = out.bytes.data() + (fpstate - out.address);
  std::memcpy(fp, xstate.data(), xstate.size());
  uint64_t xfeatures = 0;  // ptrace leaves the enabled features where the software bytes go
  std::memcpy(&xfeatures, fp + kSoftwareBytesAt, sizeof xfeatures);
  FpxSoftwareBytes software{};
  software.magic1 = kMagic1;
  software.xstate_size = static_cast<uint32_t>(xstate.size());
  software.extended_size = software.xstate_size + static_cast<uint32_t>(sizeof kMagic2);
  software.xfeatures = xfeatures;
  std::memcpy(fp + kSoftwareBytesAt, &software, sizeof software);
  std::memcpy(fp + xstate.size(), &kMagic2, sizeof kMagic2);
  return out;
}

}  // namespace medes
