#include "serving/keeper.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <ctime>
#include <mutex>
#include <string>
#include <vector>

#include "common/error.h"
#include "procfs/proc.h"
#include "store/child_file.h"

namespace medes {
namespace {

constexpr size_t kMaxListedFds = 1u << 20;  // those above are kept, whatever they are
constexpr int kReleaseSignal = 34;          // real-time: queued, each with the number of a descriptor
// How long a keeper that has kept something stays when that has gone, to say so: a new agent could not tell
// it from one that was killed.
constexpr int kSweepsAfter = 25;
constexpr timespec kSweepEvery{0, 200'000'000}, kDeathPoll{0, 50'000'000};
constexpr uint64_t kNowhere = 1u << 20;  // an address no program maps

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif
// The keeper runs without a heap, without initialised libraries and, sanitized, without a run time.
#define MEDES_BARE __attribute__((no_sanitize("address", "thread", "undefined"), no_stack_protector))

// What the keeper is to make of a descriptor; 0 where nothing was said: kept if it is a userfaultfd.
// Above 0: kept, and the file with number (mark - 1) told when its memory is gone.
constexpr int32_t kFile = -1;

// Shared with the keeper, a mark a descriptor.
volatile int32_t* marks() {
  static void* const table = mmap(nullptr, kMaxListedFds * sizeof(int32_t), PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return table == MAP_FAILED ? nullptr : static_cast<volatile int32_t*>(table);
}

void mark(int fd, int32_t what) {
  volatile int32_t* const table = marks();
  if (table != nullptr && fd >= 0 && static_cast<size_t>(fd) < kMaxListedFds) table[fd] = what;
}

// --- inside the keeper: system calls and the stack, nothing else ---
MEDES_BARE inline long bare_call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
}

MEDES_BARE inline long address_of(const volatile void* pointer) { return reinterpret_cast<long>(pointer); }

MEDES_BARE inline bool between(uint64_t address, const uint64_t* range) {
  return range[0] <= address && address < range[1];
}

// What the clone copied of the agent's memory would stay allocated as the agent's own changes: of all private
// memory only libraries' data, the stack and the thread's block stay, and no shared file.
MEDES_BARE void drop_memory(const volatile void* table, uint64_t thread_block) {
  const int maps = static_cast<int>(bare_call(SYS_open, address_of("/proc/self/maps"), O_RDONLY));
  if (maps < 0) return;
  char text[1024];
  // One line at a time: begin, end, sharing, whether it has a path.
  uint64_t number[2] = {0, 0};
  int field = 0, column = 0;
  bool shared = false;
  char name = 0, name_next = 0;
  for (;;) {
    const long n = bare_call(SYS_read, maps, address_of(text), sizeof text);
    if (n <= 0) break;
    for (long i = 0; i < n; ++i) {
      const char c = text[i];
      if (c == '\n') {
        const auto here = reinterpret_cast<uint64_t>(__builtin_frame_address(0));
        const bool needed = between(here, number) || between(thread_block, number) ||
                            between(reinterpret_cast<uint64_t>(table), number);
        const bool heap = name == '[' && (name_next == 'h' || name_next == 'a');  // [heap], [anon:…]
        if (!needed && (shared || name == 0 || heap))
          bare_call(SYS_munmap, static_cast<long>(number[0]), static_cast<long>(number[1] - number[0]));
        number[0] = number[1] = 0;
        field = column = 0;
        shared = false;
        name = name_next = 0;
        continue;
      }
      if (field < 2) {  // "begin-end "
        if (c == '-' || c == ' ')
          ++field;
        else
          number[field] = number[field] * 16 + static_cast<uint64_t>(c <= '9' ? c - '0' : c - 'a' + 10);
        continue;
      }
      if (field < 6) {  // rwxp, offset, device, inode
        if (field == 2 && column == 3) shared = c == 's';
        ++column;
        if (c == ' ') ++field, column = 0;
        continue;
      }
      if (c == ' ' && name == 0) continue;
      if (name == 0)
        name = c;
      else if (name_next == 0)
        name_next = c;
    }
  }
  bare_call(SYS_close, maps);
}

// `link` is the descriptor's in /proc/self/fd.
MEDES_BARE bool is_userfaultfd(const char* link) {
  char target[64];
  const long n = bare_call(SYS_readlink, address_of(link), address_of(target), sizeof target);
  const char* const wanted = "anon_inode:[userfaultfd]";
  long i = 0;
  for (; wanted[i] != 0; ++i)
    if (i >= n || target[i] != wanted[i]) return false;
  return i == n;
}

MEDES_BARE bool memory_is_gone(int fd) {
  struct {
    uint64_t start, length, mode;
    int64_t done;
  } zero;  // uffdio_zeropage; of nothing that exists
  zero.start = kNowhere, zero.length = 4096, zero.mode = 0, zero.done = 0;
  return bare_call(SYS_ioctl, fd, static_cast<long>(UFFDIO_ZEROPAGE), address_of(&zero)) == -ESRCH;
}

MEDES_BARE inline int32_t mark_of(const volatile int32_t* table, int fd) {
  return static_cast<size_t>(fd) < kMaxListedFds ? table[fd] : 0;
}

// `gone`: its memory is, which is what the file beside it is told.
MEDES_BARE void close_kept(const volatile int32_t* table, int fd, bool gone) {
  const int32_t file = mark_of(table, fd) - 1;
  const uint32_t done = 1;
  if (file >= 0 && gone)
    bare_call(SYS_pwrite64, file, address_of(&done), sizeof done, ChildFile::kDoneOffset);
  if (file >= 0) bare_call(SYS_close, file);
  bare_call(SYS_close, fd);
}

struct Swept {
  int kept, gone;  // userfaultfds
};

// Closes what is not to be kept, or has no memory any more.
MEDES_BARE Swept sweep(const volatile int32_t* table) {
  Swept out;
  out.kept = out.gone = 0;
  const int folder = static_cast<int>(bare_call(SYS_open, address_of("."), O_RDONLY | O_DIRECTORY));
  if (folder < 0) return out;
  alignas(8) char entries[2048];
  for (;;) {
    const long n = bare_call(SYS_getdents64, folder, address_of(entries), sizeof entries);
    if (n <= 0) break;
    for (long at = 0; at < n;) {
      // linux_dirent64: u64 inode, i64 offset, u16 length, u8 type, name
      const char* const name = entries + at + 19;
      at += *reinterpret_cast<const uint16_t*>(entries + at + 16);
      if (name[0] < '0' || name[0] > '9') continue;
      int fd = 0;
      for (const char* digit = name; *digit != 0; ++digit) fd = fd * 10 + (*digit - '0');
      const int32_t mark = mark_of(table, fd);
      if (fd == folder || mark == kFile) continue;
      if (!is_userfaultfd(name)) {
        bare_call(SYS_close, fd);
      } else if (memory_is_gone(fd)) {
        close_kept(table, fd, true);
        ++out.gone;
      } else {
        ++out.kept;
      }
    }
  }
  bare_call(SYS_close, folder);
  return out;
}

// The descriptor alone would not do: the agent may close it by mistake, and its number may be used anew.
MEDES_BARE void wait_for_death(pid_t agent, int handle) {
  while (bare_call(SYS_getppid) == agent) {
    pollfd dead;
    dead.fd = handle, dead.events = POLLIN, dead.revents = 0;
    if (bare_call(SYS_ppoll, address_of(&dead), 1) > 0 && bare_call(SYS_getppid) == agent)
      bare_call(SYS_nanosleep, address_of(&kDeathPoll));
  }
}

[[noreturn]] MEDES_BARE void keep(const volatile int32_t* table, pid_t agent, int handle) {
  uint64_t thread_block;
  __asm__("mov %%fs:0, %0" : "=r"(thread_block));
  bare_call(SYS_setsid);
  bare_call(SYS_prctl, PR_SET_NAME, address_of("medes-keeper"));
  bare_call(SYS_prctl, PR_SET_PTRACER, static_cast<long>(PR_SET_PTRACER_ANY));
  bare_call(SYS_chdir, address_of("/proc/self/fd"));
  if (!kSanitized) drop_memory(table, thread_block);
  wait_for_death(agent, handle);
  const uint64_t wanted = 1ull << (kReleaseSignal - 1);
  bool kept = false;
  for (int nothing = 0;;) {
    const Swept swept = sweep(table);
    kept |= swept.kept + swept.gone > 0;
    nothing = swept.kept > 0 ? 0 : nothing + 1;
    if (nothing > (kept ? kSweepsAfter : 0)) bare_call(SYS_exit_group, 0);
    alignas(8) char info[128];  // siginfo_t: the sent value is the word at 24
    while (bare_call(SYS_rt_sigtimedwait, address_of(&wanted), address_of(info), address_of(&kSweepEvery),
                     sizeof wanted) == kReleaseSignal) {
      close_kept(table, *reinterpret_cast<const int*>(info + 24), false);
      kept = false;  // a new agent is there, and has looked
    }
  }
}

// --- the agent's side ---
struct Running {
  std::mutex mutex;
  pid_t owner = 0;  // who started it: a forked copy of this process has none
  Holder keeper;
  UniqueFd handle;  // on this process, for the keeper to wait for
  struct LeftOpen {
    UniqueFd fd;
    std::shared_ptr<ChildFile> file;
    keeper::ToldWhenGone told;
  };
  std::vector<LeftOpen> left_open;
};
Running& running() {
  static auto& r = *new Running;  // threads may outlive static objects
  return r;
}

uint64_t inode_of(int fd) {
  struct stat st{};
  return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

bool still_runs(const Running& r) {
  return r.owner == getpid() && r.keeper.pid > 0 && waitpid(r.keeper.pid, nullptr, WNOHANG | __WALL) == 0;
}

void start_keeper(Running& r) {
  volatile int32_t* const table = marks();
  if (table == nullptr) throw Error(Code::io, "no memory for the keeper's table");
  UniqueFd handle(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (!handle) throw errno_error(errno, "cannot open a handle on this process");
  const pid_t self = getpid();
  sigset_t all, before;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);
  const long pid = syscall(SYS_clone, CLONE_FILES, nullptr, nullptr, nullptr, nullptr);
  if (pid == 0) keep(table, self, handle.get());
  const int err = errno;
  (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) throw errno_error(err, "cannot start the keeper of descriptors");
  r.owner = self;
  r.handle = std::move(handle);
  r.keeper = {static_cast<int32_t>(pid), -1, process_start_time(static_cast<pid_t>(pid))};
}

}  // namespace

namespace keeper {

void start() {
  Running& r = running();
  const std::lock_guard lock(r.mutex);
  if (!still_runs(r)) start_keeper(r);
}

Holder holder_of(int fd) {
  Running& r = running();
  const std::lock_guard lock(r.mutex);
  try {
    if (!still_runs(r)) start_keeper(r);
  } catch (const Error&) {  // without one the next agent will find nobody alive there
  }
  Holder holder = r.keeper;
  holder.fd = fd;
  return holder;
}

Holder holder_of(int32_t pid, int32_t fd) {
  if (pid <= 0 || fd < 0) return {};
  try {
    return {pid, fd, process_start_time(pid)};
  } catch (const Error& e) {
    if (e.code != Code::process_gone) throw;
    return {};
  }
}

bool alive(const Holder& holder) {
  if (holder.pid <= 0) return false;
  try {
    const ProcessStat stat = read_stat(holder.pid);
    return stat.start_time_ticks == holder.start_time_ticks && stat.state != 'Z' && stat.state != 'X';
  } catch (const Error& e) {
    // What cannot be looked at now (no descriptor left, no right) is not gone.
    return e.code != Code::process_gone && e.code != Code::not_found;
  }
}

UniqueFd take(const Holder& holder, uint64_t inode) {
  if (!alive(holder)) return {};
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, holder.pid, 0)));
  if (!process && errno == ESRCH) return {};
  if (!process)
    throw errno_error(errno, "cannot open a handle on the keeper", "pid " + std::to_string(holder.pid));
  UniqueFd taken(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), holder.fd, 0)));
  if (!taken && errno != EBADF && errno != ESRCH)
    throw errno_error(errno, "cannot take what the keeper holds", "pid " + std::to_string(holder.pid));
  if (!taken || !is_userfaultfd(("/proc/self/fd/" + std::to_string(taken.get())).c_str())) return {};
  if (inode != 0 && inode_of(taken.get()) != inode) return {};
  return taken;
}

void release(const Holder& holder, uint64_t inode) {
  Running& r = running();
  {
    const std::lock_guard lock(r.mutex);
    if (r.owner == getpid() && r.keeper.pid == holder.pid &&
        r.keeper.start_time_ticks == holder.start_time_ticks) {
      std::erase_if(r.left_open, [&](const Running::LeftOpen& left) {
        // The number may be another one's by now.
        return left.fd.get() == holder.fd && (inode == 0 || inode_of(left.fd.get()) == inode);
      });
      return;
    }
  }
  // Between this look and the signal nothing takes that number: a keeper opens nothing for long.
  try {
    if (!take(holder, inode)) return;
  } catch (const Error&) {
    return;  // the keeper ends with what it holds, later
  }
  sigval number{};
  number.sival_int = holder.fd;
  (void)sigqueue(holder.pid, kReleaseSignal, number);
}

void leave_open(UniqueFd fd, std::shared_ptr<ChildFile> file, ToldWhenGone told) {
  release_gone();
  Running& r = running();
  const std::lock_guard lock(r.mutex);
  r.left_open.push_back({std::move(fd), std::move(file), std::move(told)});
}

void release_gone() {
  Running& r = running();
  const std::lock_guard lock(r.mutex);
  std::erase_if(r.left_open, [](const Running::LeftOpen& left) { return memory_is_gone(left.fd.get()); });
}

ToldWhenGone::ToldWhenGone(int fd, int file) : fd_(fd), file_(file) {
  mark(file, kFile);
  mark(fd, file + 1);
}

ToldWhenGone& ToldWhenGone::operator=(ToldWhenGone&& other) noexcept {
  end();
  fd_ = std::exchange(other.fd_, -1);
  file_ = std::exchange(other.file_, -1);
  return *this;
}

void ToldWhenGone::end() noexcept {
  if (fd_ >= 0) mark(fd_, 0);
  if (file_ >= 0) mark(file_, 0);
  fd_ = file_ = -1;
}

}  // namespace keeper

}  // namespace medes
