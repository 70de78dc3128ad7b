// Many threads at once in calls that a stop interrupts, each with a time of its own in the middle of which it
// is stopped. Says "ready" when all wait, then, when all have returned, how many came too early, with another
// result than the call has at its time's end, or with a time of theirs that was changed.
// usage: waits THREADS MILLISECONDS
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <linux/futex.h>
#include <unistd.h>

static atomic_int waiting, early, wrong, changed;
static long wait_ns;
static int word;

static long now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void *waits(void *number) {
  const int kind = (int)(long)number % 7;
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
  if (now_ns() - begin < wait_ns - 1000000) atomic_fetch_add(&early, 1);
  if (result != 0) atomic_fetch_add(&wrong, 1);
  if (given.tv_sec != time.tv_sec || given.tv_nsec != time.tv_nsec) atomic_fetch_add(&changed, 1);
  close(epoll);
  return 0;
}

int main(int argc, char **argv) {
  const int count = argc > 2 ? atoi(argv[1]) : 100;
  wait_ns = (argc > 2 ? atol(argv[2]) : 1000) * 1000000;
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
  printf("early %d wrong %d changed %d\n", early, wrong, changed);
  fflush(stdout);
  for (;;) pause();
}
