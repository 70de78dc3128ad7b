// Many threads at once in calls that a stop interrupts, each with a time of its own in the middle of which it
// is stopped. Says "ready" when all wait, then, when all have returned, how many came too early, with another
// result than the call has at its time's end, or with a time of theirs that was changed.
// usage: waits THREADS MILLISECONDS
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { kKinds = 17 };
static atomic_int waiting, early, wrong, changed;
static long wait_ns;
static int word, semaphores;
static mqd_t queue;

static long now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}

static struct timespec later(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  const long ns = t.tv_nsec + wait_ns;
  return (struct timespec){t.tv_sec + ns / 1000000000, ns % 1000000000};
}

static int fails_with(long result, int error) { return result == -1 && errno == error ? 0 : -1; }

static long receive(long us) {
  int ends[2];
  char byte;
  const struct timeval limit = {us / 1000000, us % 1000000};
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit))
    return -1;
  const int result = fails_with(recv(ends[0], &byte, 1, 0), EAGAIN);
  close(ends[0]);
  close(ends[1]);
  return result;
}

// Of calls of which the kernel writes back what is left, or that wait until a point in time.
static long waits_more(int kind) {
  struct timespec left = {wait_ns / 1000000000, wait_ns % 1000000000};
  struct timeval left_us = {wait_ns / 1000000000, wait_ns % 1000000000 / 1000};
  const struct timespec then = later(CLOCK_MONOTONIC), then_of_day = later(CLOCK_REALTIME);
  const struct {
    unsigned long value, address;
    unsigned flags, reserved;
  } of_futex = {0, (unsigned long)&word, 2 | FUTEX_PRIVATE_FLAG, 0};
  sigset_t none;
  sigemptyset(&none);
  char bytes[8];
  switch (kind) {
    case 8: return syscall(SYS_ppoll, 0, 0, &left, 0, 8);
    case 9: return syscall(SYS_ppoll, 0, 0, &left, &none, 8);
    case 10: return syscall(SYS_pselect6, 0, 0, 0, 0, &left, 0);
    case 11: return syscall(SYS_select, 0, 0, 0, 0, &left_us);
    case 12: return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &then, 0);
    case 13: return fails_with(mq_timedreceive(queue, bytes, sizeof bytes, 0, &then_of_day), ETIMEDOUT);
    case 14: return fails_with(syscall(449, &of_futex, 1, 0, &then, CLOCK_MONOTONIC), ETIMEDOUT);
    case 15: return receive(wait_ns / 1000);
    default:
      return fails_with(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &then, 0, FUTEX_BITSET_MATCH_ANY), ETIMEDOUT);
  }
}

static void *waits(void *number) {
  const int kind = (int)(long)number % kKinds;
  const struct timespec time = {wait_ns / 1000000000, wait_ns % 1000000000};
  struct timespec given = time;
  const int epoll = epoll_create1(0);
  struct epoll_event event;
  struct pollfd none = {-1, POLLIN, 0};
  sigset_t usr2;
  sigemptyset(&usr2);
  sigaddset(&usr2, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &usr2, 0);
  const long begin = now_ns();
  atomic_fetch_add(&waiting, 1);
  long result = 0;
  errno = 0;
  if (kind == 0) result = epoll_wait(epoll, &event, 1, (int)(wait_ns / 1000000));
  if (kind == 1) result = syscall(441, epoll, &event, 1, &given, 0, 8);
  if (kind == 2) result = poll(&none, 1, (int)(wait_ns / 1000000));
  if (kind == 3) result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &given, 0, 0) == -1 && errno == ETIMEDOUT ? 0 : -1;
  if (kind == 4) result = nanosleep(&given, 0);
  if (kind == 5) result = sigtimedwait(&usr2, 0, &given) == -1 && errno == EAGAIN ? 0 : -1;
  if (kind == 6) result = clock_nanosleep(CLOCK_MONOTONIC, 0, &given, 0);
  if (kind == 7) {
    struct sembuf down = {0, -1, 0};
    result = fails_with(syscall(SYS_semtimedop, semaphores, &down, 1, &given), EAGAIN);
  }
  if (kind >= 8) result = waits_more(kind);
  if (now_ns() - begin < wait_ns - 1000000) atomic_fetch_add(&early, 1);
  if (result != 0) atomic_fetch_add(&wrong, 1);
  if (given.tv_sec != time.tv_sec || given.tv_nsec != time.tv_nsec) atomic_fetch_add(&changed, 1);
  close(epoll);
  return 0;
}

int main(int argc, char **argv) {
  const int count = argc > 2 ? atoi(argv[1]) : 100;
  wait_ns = (argc > 2 ? atol(argv[2]) : 1000) * 1000000;
  struct mq_attr one = {.mq_maxmsg = 1, .mq_msgsize = 8};
  char name[32];
  snprintf(name, sizeof name, "/medes-waits-%d", getpid());
  queue = mq_open(name, O_RDWR | O_CREAT, 0600, &one);
  mq_unlink(name);
  semaphores = semget(IPC_PRIVATE, 1, 0600);
  pthread_t *threads = calloc((size_t)count, sizeof *threads);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 1 << 17);
  for (long i = 0; i < count; ++i)
    if (pthread_create(&threads[i], &small, waits, (void *)i)) return 2;
  while (atomic_load(&waiting) < count) usleep(1000);
  puts("ready");
  fflush(stdout);
  for (int i = 0; i < count; ++i) pthread_join(threads[i], 0);
  semctl(semaphores, 0, IPC_RMID);
  printf("early %d wrong %d changed %d\n", early, wrong, changed);
  fflush(stdout);
  for (;;) pause();
}
