// Calls that go on after a stop, with what is left of their time.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "tests/stopped_child.h"

namespace medes {
namespace {

struct Case {
  const char* name;
  long number;
  std::function<long()> call;
};

int socket_with_timeout() {
  int sv[2];
  (void)!socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
  const timeval hour{3600, 0};
  setsockopt(sv[0], SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof hour);
  return sv[0];
}

// Where that is permitted they end with their process.
void own_queues_and_semaphores() { (void)!unshare(CLONE_NEWIPC); }

int semaphore() {
  own_queues_and_semaphores();
  return semget(IPC_PRIVATE, 1, 0600);
}

long wait_for_signal(const timespec* timeout) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return syscall(SYS_rt_sigtimedwait, &set, nullptr, timeout, 8);
}

int locked_by_another() {
  char path[] = "/tmp/medes-lock-XXXXXX";
  const int fd = mkstemp(path), other = open(path, O_RDWR);
  unlink(path);
  (void)flock(other, LOCK_EX);
  struct flock whole{};
  whole.l_type = F_WRLCK;
  (void)fcntl(other, F_OFD_SETLK, &whole);
  return fd;
}

int empty_pipe() {
  int ends[2];
  (void)!pipe(ends);
  return ends[0];
}

int full_pipe() {
  int ends[2];
  (void)!pipe2(ends, O_NONBLOCK);
  static char page[4096];
  while (write(ends[1], page, sizeof page) > 0) {
  }
  (void)fcntl(ends[1], F_SETFL, 0);
  return ends[1];
}

int listening() {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  const sockaddr_un nowhere{AF_UNIX, {}};
  const timeval hour{3600, 0};
  (void)bind(fd, reinterpret_cast<const sockaddr*>(&nowhere), sizeof(sa_family_t));
  (void)listen(fd, 1);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof hour);
  return fd;
}

// Calls that the kernel itself makes again after a stop. An injected call in between changes nothing.
std::vector<Case> cases_of_the_kernel() {
  static char bytes[128];
  static uint32_t word = 0;
  static sigset_t none;
  sigemptyset(&none);
  const auto in_an_hour = [] {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += 3600;
    return t;
  };
  const auto wait_for_child = [](auto wait) {
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) pause();
    }
    return wait();
  };
  const auto lock = [](int command) {
    struct flock whole{};
    whole.l_type = F_WRLCK;
    return fcntl(locked_by_another(), command, &whole);
  };
  const auto queue = [] {
    mq_attr one{};
    one.mq_maxmsg = 1, one.mq_msgsize = sizeof bytes;
    const std::string name = "/medes-test-" + std::to_string(getpid());
    const mqd_t q = mq_open(name.c_str(), O_RDWR | O_CREAT, 0600, &one);
    mq_unlink(name.c_str());
    return q;
  };
  return {
      {"msgrcv", SYS_msgrcv,
       [] {
         own_queues_and_semaphores();
         return msgrcv(msgget(IPC_PRIVATE, 0600), bytes, 8, 0, 0);
       }},
      {"mq_timedreceive", SYS_mq_timedreceive,
       [=] {
         timespec t{};
         clock_gettime(CLOCK_REALTIME, &t);
         t.tv_sec += 3600;
         return mq_timedreceive(queue(), bytes, sizeof bytes, nullptr, &t);
       }},
      {"wait4", SYS_wait4,
       [=] { return wait_for_child([] { return wait4(-1, nullptr, __WALL, nullptr); }); }},
      {"waitid", SYS_waitid,
       [=] { return wait_for_child([] { return waitid(P_ALL, 0, nullptr, WEXITED); }); }},
      {"flock", SYS_flock, [] { return flock(locked_by_another(), LOCK_EX); }},
      {"F_OFD_SETLKW", SYS_fcntl, [=] { return lock(F_OFD_SETLKW); }},
      {"ppoll with a mask", SYS_ppoll,
       [] {
         timespec hour = kHour;
         return syscall(SYS_ppoll, nullptr, 0, &hour, &none, 8);
       }},
      {"pselect with a mask", SYS_pselect6,
       [] {
         timespec hour = kHour;
         const struct {
           const void* mask;
           size_t bytes;
         } of{&none, 8};
         return syscall(SYS_pselect6, 0, nullptr, nullptr, nullptr, &hour, &of);
       }},
      {"select", SYS_select,
       [] {
         timeval hour{3600, 0};
         return syscall(SYS_select, 0, nullptr, nullptr, nullptr, &hour);
       }},
      {"clock_nanosleep until", SYS_clock_nanosleep,
       [=] {
         const timespec then = in_an_hour();
         return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &then, nullptr);
       }},
      {"clock_nanosleep", SYS_clock_nanosleep,
       [] { return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &kHour, nullptr); }},
      {"futex with a timeout", SYS_futex,
       [] { return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &kHour, nullptr, 0); }},
      {"sigsuspend", SYS_rt_sigsuspend, [] { return syscall(SYS_rt_sigsuspend, &none, 8); }},
      {"accept with a timeout", SYS_accept4, [] { return accept4(listening(), nullptr, nullptr, 0); }},
      {"recvmsg with a timeout", SYS_recvmsg,
       [] {
         iovec part{bytes, 1};
         msghdr message{};
         message.msg_iov = &part, message.msg_iovlen = 1;
         return recvmsg(socket_with_timeout(), &message, 0);
       }},
      {"read of a pipe", SYS_read, [] { return read(empty_pipe(), bytes, 1); }},
      {"write to a pipe", SYS_write, [] { return write(full_pipe(), bytes, 1); }},
      {"splice", SYS_splice, [] { return splice(empty_pipe(), nullptr, full_pipe(), nullptr, 4096, 0); }},
      {"read of an eventfd", SYS_read, [] { return read(eventfd(0, 0), bytes, 8); }},
      {"read of a signalfd", SYS_read,
       [] {
         sigset_t one;
         sigemptyset(&one);
         sigaddset(&one, SIGUSR1);
         sigprocmask(SIG_BLOCK, &one, nullptr);
         return read(signalfd(-1, &one, 0), bytes, sizeof bytes);
       }},
      {"read of a timerfd", SYS_read,
       [] {
         const int fd = timerfd_create(CLOCK_MONOTONIC, 0);
         const itimerspec hour{{}, kHour};
         timerfd_settime(fd, 0, &hour, nullptr);
         return read(fd, bytes, 8);
       }},
      {"read of inotify", SYS_read, [] { return read(inotify_init(), bytes, sizeof bytes); }},
  };
}

std::vector<Case> cases() {
  static sembuf down{0, -1, 0};
  static epoll_event event;
  static char byte;
  return {
      {"epoll_wait", SYS_epoll_wait, [] { return epoll_wait(epoll_create1(0), &event, 1, kHourMs); }},
      {"epoll_wait, no timeout", SYS_epoll_wait, [] { return epoll_wait(epoll_create1(0), &event, 1, -1); }},
      {"epoll_pwait", SYS_epoll_pwait,
       [] {
         sigset_t none;
         sigemptyset(&none);
         return epoll_pwait(epoll_create1(0), &event, 1, kHourMs, &none);
       }},
      {"epoll_pwait2", kSysEpollPwait2,
       [] { return syscall(kSysEpollPwait2, epoll_create1(0), &event, 1, &kHour, nullptr, 8); }},
      {"sigwaitinfo", SYS_rt_sigtimedwait, [] { return wait_for_signal(nullptr); }},
      {"sigtimedwait", SYS_rt_sigtimedwait, [] { return wait_for_signal(&kHour); }},
      {"recv", SYS_recvfrom, [] { return recv(socket_with_timeout(), &byte, 1, 0); }},
      {"read of a socket", SYS_read, [] { return read(socket_with_timeout(), &byte, 1); }},
      {"semop", SYS_semop, [] { return syscall(SYS_semop, semaphore(), &down, 1); }},
      {"semtimedop", SYS_semtimedop, [] { return syscall(SYS_semtimedop, semaphore(), &down, 1, &kHour); }},
      {"ppoll of a constant", SYS_ppoll, [] { return syscall(SYS_ppoll, nullptr, 0, &kHour, nullptr, 8); }},
      {"pselect of a constant", SYS_pselect6,
       [] { return syscall(SYS_pselect6, 0, nullptr, nullptr, nullptr, &kHour, nullptr); }},
      {"poll", SYS_poll, [] { return syscall(SYS_poll, nullptr, 0, kHourMs); }},
      {"pause", SYS_pause, [] { return syscall(SYS_pause); }},
  };
}

// Each call is stopped three times, with a call injected in the second stop, and `again` told when it sleeps
// again.
void go_on(const std::vector<Case>& cases, const std::function<void(const Child&, const Case&)>& again) {
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const Child child(c.call);
    (void)child.sleeping_in(c.number);
    for (int round = 0; round < 3; ++round) {
      stop_for(child.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
        if (round != 1) return;
        EXPECT_EQ(inject_into(stop, child.pid())->call(SYS_getpid, {}), child.pid());
      });
      again(child, c);
    }
    EXPECT_FALSE(child.has_ended());
  }
}

TEST(Stops, CallsGoOn) {
  go_on(cases(), [](const Child& child, const Case& c) {
    // (poll is gone on with by restart_syscall, which takes no arguments.)
    if (c.number != SYS_poll) (void)child.sleeping_in(c.number);
  });
}

TEST(Stops, CallsOfTheKernelGoOn) {
  go_on(cases_of_the_kernel(), [](const Child& child, const Case&) {
    for (int i = 0; i < 5000 && read_stat(child.pid()).state != 'S'; ++i)
      std::this_thread::sleep_for(milliseconds(1));
  });
}

// What a hypervisor has taken of all processors, as /proc/stat counts it, rounded up.
milliseconds stolen() {
  std::ifstream file("/proc/stat");
  std::string name;
  long long user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, softirq = 0, steal = 0;
  file >> name >> user >> nice >> system >> idle >> wait >> irq >> softirq >> steal;
  EXPECT_TRUE(file.good());
  return milliseconds((steal + 1) * 1000 / sysconf(_SC_CLK_TCK));
}

// What the kernel is given for what is left: never less than when the last stop was over; never more than was
// left when the first one began, but for time that a hypervisor took meanwhile: a sleep seems shorter by
// that.
TEST(Stops, TimeoutsAreWhatIsLeft) {
  for (const auto& c : cases()) {
    int at = -1;
    if (c.number == SYS_epoll_wait || c.number == SYS_epoll_pwait || c.number == kSysEpollPwait2) at = 3;
    if (c.number == SYS_semtimedop) at = 3;
    if (c.number == SYS_rt_sigtimedwait || c.number == SYS_ppoll) at = 2;
    if (c.number == SYS_pselect6) at = 4;
    if (at < 0) continue;
    SCOPED_TRACE(c.name);
    const auto born = steady_clock::now();
    const Child child(c.call);
    const auto before = child.sleeping_in(c.number);
    const auto asleep = steady_clock::now();
    const auto stolen_before = stolen();
    const bool in_memory = before[1 + at] > UINT32_MAX;
    if (!in_memory && static_cast<int>(before[1 + at]) <= 0) continue;  // it waits for ever
    std::this_thread::sleep_for(milliseconds(50));
    const auto slept_least = std::chrono::duration_cast<milliseconds>(steady_clock::now() - asleep);
    stop_for(child.pid(), milliseconds(0),
             [&](StoppedProcesses& stop) { (void)inject_into(stop, child.pid())->call(SYS_getpid, {}); });
    stop_for(child.pid(), milliseconds(0));
    const auto fields = child.sleeping_in(c.number);
    const auto slept_most = std::chrono::duration_cast<milliseconds>(steady_clock::now() - born);
    int64_t left_ms = static_cast<int>(fields[1 + at]);
    if (in_memory) {
      timespec left{};
      ASSERT_TRUE(read_memory(child.pid(), fields[1 + at], &left, sizeof left));
      left_ms = left.tv_sec * 1000 + left.tv_nsec / 1'000'000;
    }
    constexpr int kRounding = 2;  // of the two stops
    const auto taken = stolen() - stolen_before + milliseconds(1000 / sysconf(_SC_CLK_TCK));
    EXPECT_LE(left_ms, kHourMs - slept_least.count() + kRounding + taken.count());
    EXPECT_GE(left_ms, kHourMs - slept_most.count() - kRounding);
  }
}

TEST(Stops, ATimeoutThatRanOutMeanwhileIsTheCallsOwn) {
  const Child waits([] {
    epoll_event event;
    return epoll_wait(epoll_create1(0), &event, 1, 200);
  });
  (void)waits.sleeping_in(SYS_epoll_wait);
  stop_for(waits.pid(), milliseconds(300));
  EXPECT_EQ(waits.outcome().result, 0);
  const Child signalled([] {
    const timespec soon{0, 200'000'000};
    return wait_for_signal(&soon);
  });
  (void)signalled.sleeping_in(SYS_rt_sigtimedwait);
  stop_for(signalled.pid(), milliseconds(300),
           [&](StoppedProcesses& stop) { (void)inject_into(stop, signalled.pid())->call(SYS_getpid, {}); });
  const Outcome out = signalled.outcome();
  EXPECT_EQ(out.result, -1);
  EXPECT_EQ(out.error, EAGAIN);
}

TEST(Stops, ASignalWithAHandlerStillEndsTheCall) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer runs handlers later";
#endif
  for (bool with_mask : {false, true}) {
    const Child child([with_mask] {
      struct sigaction action{};
      action.sa_handler = [](int) { g_handled = g_handled + 1; };
      sigaction(SIGUSR1, &action, nullptr);
      sigset_t all, none;
      sigfillset(&all);
      sigemptyset(&none);
      if (with_mask) sigprocmask(SIG_BLOCK, &all, nullptr);
      epoll_event event;
      const int fd = epoll_create1(0);
      return with_mask ? epoll_pwait(fd, &event, 1, kHourMs, &none) : epoll_wait(fd, &event, 1, kHourMs);
    });
    (void)child.sleeping_in(with_mask ? SYS_epoll_pwait : SYS_epoll_wait);
    // It comes while all stand still, after the call was set up to be made again.
    stop_for(child.pid(), milliseconds(0), [&](StoppedProcesses& stop) {
      (void)inject_into(stop, child.pid())->call(SYS_getpid, {});
      kill(child.pid(), SIGUSR1);
    });
    const Outcome out = child.outcome();
    EXPECT_EQ(out.result, -1);
    EXPECT_EQ(out.error, EINTR);
    EXPECT_EQ(out.handled, 1);
  }
}

}  // namespace
}  // namespace medes
