// A program in one of the shapes that a stop may disturb. Says "ready", then answers "check" lines by "ok" while its
// memory is what it was, and says "woke" when a call ends that must not.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define HEAP (8u << 20)
static unsigned char *heap;
static const char *how;
static unsigned char byte_of(size_t i) { return (unsigned char)((i * 2654435761u) >> 13 ^ (i >> 12)); }
static int is(const char *name) { return !strcmp(how, name); }
static void say(const char *text) { (void)!write(1, text, strlen(text)); }
static void fill(unsigned char *p, size_t n) {
  for (size_t i = 0; i < n; ++i) p[i] = byte_of(i);
}
static int whole(const unsigned char *p, size_t n) {
  for (size_t i = 0; i < n; ++i)
    if (p[i] != byte_of(i)) return 0;
  return 1;
}

// Answers until the line says "on".
static void answer(const unsigned char *more, size_t more_bytes) {
  char line[8];
  for (size_t at = 0;;) {
    const ssize_t n = read(0, line + at, 1);
    if (n <= 0) _exit(3);
    if (line[at] != '\n') {
      at = at + 1 < sizeof line ? at + 1 : at;
      continue;
    }
    at = 0;
    say(whole(heap, HEAP) && whole(more, more_bytes) ? "ok\n" : "BROKEN\n");
    if (!strncmp(line, "on", 2)) return;
  }
}

static void *answers(void *unused) {
  answer(heap, 0);
  return unused;
}

static void blocks(void) {
  static const struct timespec hour = {3600, 0};
  static struct epoll_event event;
  unsigned char *far = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(far, 1, 1 << 20);
  int quiet[2];
  if (pipe(quiet)) _exit(4);
  struct pollfd *polls = (struct pollfd *)(far + 100000);
  fd_set *set = (fd_set *)(far + 300000);
  FD_ZERO(set);
  FD_SET(quiet[0], set);
  for (int i = 0; i < 1000; ++i) polls[i] = (struct pollfd){i ? -1 : quiet[0], POLLIN, 0};
  int signal_number;
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  sigprocmask(SIG_BLOCK, &usr1, 0);
  sigset_t *const far_set = (sigset_t *)(far + 600000);
  *far_set = usr1;
  struct {
    uint64_t mask;
    uint32_t mask_bytes, pad;
    uint64_t time;
  } wait = {0, 8, 0, (uint64_t)&hour};
  struct io_uring_params params = {0};
  const int ring = is("uring") || is("uring-time") ? (int)syscall(SYS_io_uring_setup, 4, &params) : -1;
  say("ready\n");
  if (is("epoll")) epoll_wait(epoll_create1(0), &event, 1, 3600000);
  if (is("epoll-spec")) syscall(441, epoll_create1(0), &event, 1, &hour, 0, 8);
  if (is("sigtimedwait")) sigtimedwait(&usr1, 0, &hour);
  if (is("sigwait")) sigwait(far_set, &signal_number);
  if (is("ppoll")) syscall(SYS_ppoll, polls, 1000, &hour, 0, 8);
  if (is("poll")) poll(polls, 1000, -1);
  if (is("select")) select(quiet[0] + 1, set, 0, 0, 0);
  if (is("uring")) syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, 0, 0);
  if (is("uring-time"))
    syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &wait, sizeof wait);
  say(errno == ENOSYS ? "ENOSYS\n" : "woke\n");
  for (;;) pause();
}

static ucontext_t main_context, fiber;
static void in_fiber(void) {
  say("ready\n");
  answer(heap, 0);
}
static void handler(int signal) {
  (void)signal;
  in_fiber();
}
__attribute__((noinline)) static void suspended(void) {
  unsigned char frame[1 << 20];
  fill(frame, sizeof frame);
  __asm__ volatile("" : : "r"(frame) : "memory");
  if (is("fiber")) swapcontext(&main_context, &fiber);
  if (is("altstack")) raise(SIGUSR2);
  if (is("frame")) in_fiber();
  answer(frame, sizeof frame);
}

// The main thread waits for SIGUSR1 and ends, and reads and writes no memory of its own on the way.
__attribute__((noreturn)) static void ends_quietly(void) {
  static const uint64_t usr1 = 1ull << (SIGUSR1 - 1);
  register long bytes __asm__("r10") = 8;
  long waits = SYS_rt_sigtimedwait;
  __asm__ volatile("syscall" : "+a"(waits) : "D"(&usr1), "S"(0), "d"(0), "r"(bytes) : "rcx", "r11", "memory");
  __asm__ volatile("syscall" : : "a"(SYS_exit), "D"(0) : "rcx", "r11", "memory");
  __builtin_unreachable();
}

int main(int argc, char **argv) {
  how = argc > 1 ? argv[1] : "epoll";
  heap = mmap(0, HEAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  fill(heap, HEAP);
  if (is("fiber") || is("altstack") || is("frame")) {
    void *stack = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = 1 << 16}, 0);
    sigaction(SIGUSR2, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_ONSTACK}, 0);
    getcontext(&fiber);
    fiber.uc_stack = (stack_t){.ss_sp = stack, .ss_size = 1 << 16};
    fiber.uc_link = &main_context;
    makecontext(&fiber, in_fiber, 0);
    suspended();
    return 0;
  }
  pthread_t other;
  if (is("leader")) {
    say("ready\n");
    answer(heap, 0);  // after "on" the main thread ends
    pthread_create(&other, 0, answers, 0);
    pthread_exit(0);
  }
  if (is("leader-quiet")) {
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, 0);
    pthread_create(&other, 0, answers, 0);
    say("ready\n");
    ends_quietly();
  }
  pthread_create(&other, 0, answers, 0);
  blocks();
}
