// A sandbox that does its worst while it is dedup'd and restored: `hostile MODE`. Runs until it is killed, as an
// ordinary user, within the limits that its driver sets (processes, descriptors). Prints one line when it has begun.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hostile_rings.h"

enum { kPage = 4096, kPages = 2048 };
static unsigned char* area;
static const char* self;

static void nap_us(long us) {
  const struct timespec t = {us / 1000000, us % 1000000 * 1000};
  nanosleep(&t, NULL);
}

static void fill(void) {
  for (int p = 0; p < kPages; ++p)
    for (int at = 0; at < kPage; at += 64) *(uint64_t*)(area + p * kPage + at) = (uint64_t)p * 2654435761u + at;
}

// The copy of the userfaultfd that is kept in the sandbox: read, used, doubled and closed.
static void use_userfaultfd(void) {
  static unsigned char own[kPage];
  memset(own, 0x5a, sizeof own);
  for (int round = 0;; ++round) {
    DIR* const folder = opendir("/proc/self/fd");
    for (const struct dirent* e; folder && (e = readdir(folder));) {
      char path[64], to[64] = "";
      snprintf(path, sizeof path, "/proc/self/fd/%.20s", e->d_name);
      if (readlink(path, to, sizeof to - 1) < 0 || !strstr(to, "userfaultfd")) continue;
      const int fd = atoi(e->d_name);
      for (int i = 0; i < 64; ++i) {
        struct uffdio_copy copy = {.dst = (uintptr_t)area + (uintptr_t)(rand() % kPages) * kPage,
                                   .src = (uintptr_t)own,
                                   .len = kPage};
        ioctl(fd, UFFDIO_COPY, &copy);
      }
      fcntl(fd, F_SETFL, O_NONBLOCK);
      struct uffd_msg message;
      (void)!read(fd, &message, sizeof message);
      struct uffdio_range range = {(uintptr_t)area, kPages / 2 * kPage};
      if (round % 3 == 0) ioctl(fd, UFFDIO_UNREGISTER, &range);
      if (round % 3 == 1) dup2(fd, 900), close(fd);
      if (round % 7 == 6) close(fd);
    }
    if (folder) closedir(folder);
    nap_us(300);
  }
}

static void* storm_of_mappings(void* seed_of) {
  unsigned seed = (unsigned)(uintptr_t)seed_of;
  for (;;) {
    const size_t at = (size_t)(rand_r(&seed) % (kPages - 64)) * kPage, bytes = (size_t)(1 + rand_r(&seed) % 63) * kPage;
    switch (rand_r(&seed) % 7) {
      case 0: munmap(area + at, bytes); break;
      case 1:
        mmap(area + at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        break;
      case 2: mprotect(area + at, bytes, rand_r(&seed) % 2 ? PROT_READ : PROT_READ | PROT_WRITE); break;
      case 3: madvise(area + at, bytes, MADV_DONTNEED); break;
      case 4: {
        void* const moved = mremap(area + at, bytes, bytes + kPage, MREMAP_MAYMOVE);
        if (moved != MAP_FAILED && moved != area + at) munmap(moved, bytes + kPage);
        break;
      }
      case 5: madvise(area + at, bytes, MADV_FREE); break;
      default: mlock(area + at, kPage); munlock(area + at, kPage);
    }
    if (rand_r(&seed) % 16 == 0) nap_us(200);
  }
  return NULL;
}

static void fork_and_exec(void) {
  for (;;) {
    for (int i = 0; i < 8; ++i) {
      const pid_t child = fork();
      if (child == 0) {
        area[(size_t)(rand() % kPages) * kPage] ^= 1;
        if (i % 2) execl(self, self, "exit", NULL);
        if (i % 4 == 0 && fork() == 0) nap_us(5000);
        _exit(0);
      }
    }
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
    nap_us(2000);
  }
}

// What /proc shows of it: names with brackets, spaces and newlines, arguments and heap elsewhere.
static void forge(void) {
  char name[256];
  snprintf(name, sizeof name, "/tmp/x) R 1 1\n7f0000000000-7f0000001000 rwxp 00000000 00:00 0  [stack]%d", getpid());
  const int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
  if (fd >= 0) {
    (void)!ftruncate(fd, 16 * kPage);
    void* const file = mmap(NULL, 16 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (file != MAP_FAILED) memset(file, 7, 16 * kPage);
    unlink(name);
  }
  if (unshare(CLONE_NEWUSER) == 0) prctl(PR_SET_DUMPABLE, 1);
  for (unsigned round = 0;; ++round) {
    static const char* const names[] = {") R 1 2 3 (", "a\nUid:\t0\t0", "((((", "S) 0 0 0"};
    prctl(PR_SET_NAME, names[round % 4]);
    prctl(PR_SET_MM, PR_SET_MM_ARG_START, (uintptr_t)area + round % 64 * kPage, 0, 0);
    prctl(PR_SET_MM, PR_SET_MM_ARG_END, (uintptr_t)area + (64 + round % 64) * kPage, 0, 0);
    prctl(PR_SET_MM, PR_SET_MM_ENV_END, UINTPTR_MAX - kPage, 0, 0);
    prctl(PR_SET_MM, PR_SET_MM_START_BRK, (uintptr_t)area, 0, 0);
    prctl(PR_SET_MM, PR_SET_MM_START_STACK, (uintptr_t)area, 0, 0);
    prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (uintptr_t)area, kPage * 4, "heap) rw-p (stack");
    nap_us(500);
  }
}

static void nest_user_namespaces(void) {
  for (int depth = 0; depth < 8; ++depth)
    if (unshare(CLONE_NEWUSER)) break;
  for (;;) {
    const pid_t child = fork();
    if (child == 0) {
      unshare(CLONE_NEWUSER | CLONE_NEWPID);
      if (fork() == 0) nap_us(20000);
      _exit(0);
    }
    if (child > 0) waitpid(child, NULL, 0);
    nap_us(3000);
  }
}

static void trace(void) {
  for (;;) {
    const pid_t child = fork();
    if (child == 0) {
      ptrace(PTRACE_TRACEME, 0, NULL, NULL);
      raise(SIGSTOP);
      ptrace(PTRACE_ATTACH, getppid(), NULL, NULL);
      nap_us(20000);
      _exit(0);
    }
    if (child > 0) {
      waitpid(child, NULL, 0);
      nap_us(10000);
      ptrace(PTRACE_CONT, child, NULL, NULL);
      kill(child, SIGKILL);
      waitpid(child, NULL, 0);
    }
  }
}

static void deaf(void) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
  for (int i = 1; i < 65; ++i) signal(i, SIG_IGN);
  for (unsigned round = 0;; ++round) {
    prctl(PR_SET_DUMPABLE, round % 2);
    const pid_t child = fork();
    if (child == 0) {  // somebody must wake it
      nap_us(3000);
      kill(getppid(), SIGCONT);
      _exit(0);
    }
    if (child > 0) {
      if (round % 4 == 0) raise(SIGSTOP);
      waitpid(child, NULL, 0);
    }
  }
}

static void* toucher(void* seed_of) {
  unsigned seed = (unsigned)(uintptr_t)seed_of;
  for (;;) {
    ++area[(size_t)(rand_r(&seed) % kPages) * kPage];
    if (rand_r(&seed) % 32 == 0) nap_us(500);
  }
  return NULL;
}

static void start_threads(int count, void* (*body)(void*)) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  for (int i = 0; i < count; ++i) {
    pthread_t thread;
    if (pthread_create(&thread, &small, body, (void*)(uintptr_t)(i + 1))) break;
  }
}

static void fill_every_queue(void) {
  for (int i = 0; i < 4000 && open("/dev/null", O_RDONLY) >= 0; ++i) {
  }
  for (int i = 0; i < 6000; ++i) mmap(NULL, kPage, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  start_threads(100, toucher);
  for (;;) pause();
}

static void vfork_and_hang(void) {
  for (;;) {
    if (vfork() == 0) {
      nap_us(100000);
      _exit(0);
    }
    nap_us(10000);
  }
}

int main(int argc, char** argv) {
  const char* const mode = argc > 1 ? argv[1] : "";
  self = argv[0];
  if (!strcmp(mode, "exit")) return 0;
  srand(1);
  signal(SIGCHLD, strcmp(mode, "fork") ? SIG_DFL : SIG_IGN);
  area = mmap(NULL, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return 2;
  fill();
  signal(SIGSEGV, SIG_DFL);
  puts("begun");
  fflush(stdout);
  if (!strcmp(mode, "userfaultfd")) use_userfaultfd();
  if (!strcmp(mode, "mappings")) start_threads(2, storm_of_mappings), storm_of_mappings((void*)9);
  if (!strcmp(mode, "fork")) fork_and_exec();
  if (!strcmp(mode, "forge")) forge();
  if (!strcmp(mode, "namespaces")) nest_user_namespaces();
  if (!strcmp(mode, "trace")) trace();
  if (!strcmp(mode, "deaf")) deaf();
  if (!strcmp(mode, "queues")) fill_every_queue();
  if (!strcmp(mode, "change")) start_threads(3, toucher), toucher((void*)7);
  if (!strcmp(mode, "vfork")) vfork_and_hang();
  if (!strcmp(mode, "rings")) return storm_of_rings(area, kPages) ? 4 : 0;
  if (!strcmp(mode, "leave")) nap_us(300000 + getpid() % 7 * 50000), _exit(0);
  if (!strcmp(mode, "become")) nap_us(400000), execl(self, self, "change", NULL);
  return 3;
}
