// Many threads wait in calls that a stop ends with EINTR, while the first one moves, forks and gives back its
// memory. Says "ok", or which wait ended.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { kThreads = 200, kChunks = 16, kChunkBytes = 1 << 20 };
static int ended = -1, error_of_ended, semaphores;
static sem_t begun;
static unsigned char pattern(size_t i) { return (unsigned char)(i * 2654435761u >> 13 ^ i >> 12); }

static void* wait_long(void* how) {
  const struct timespec minutes = {600, 0};
  int result = 0;
  sem_post(&begun);
  switch ((long)how % 4) {
    case 0: {
      struct epoll_event event;
      result = epoll_wait(epoll_create1(0), &event, 1, 600 * 1000);
      break;
    }
    case 1: {
      struct sembuf down = {0, -1, 0};
      result = semtimedop(semaphores, &down, 1, &minutes);
      break;
    }
    case 2: {
      int ends[2];
      const struct timeval limit = {600, 0};
      char byte;
      socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
      setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
      result = (int)recv(ends[0], &byte, 1, 0);
      break;
    }
    default: {
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGUSR2);
      pthread_sigmask(SIG_BLOCK, &set, NULL);
      result = sigtimedwait(&set, NULL, &minutes);
    }
  }
  error_of_ended = result < 0 ? errno : 0;
  ended = (int)((long)how % 4);
  return NULL;
}

static int child_sees(const unsigned char* at, size_t from) {
  const pid_t child = fork();
  if (child == 0) {
    for (size_t i = 0; i < kChunkBytes; ++i)
      if (at[i] != pattern(from + i)) _exit(1);
    _exit(0);
  }
  int status = 0;
  return waitpid(child, &status, 0) == child && status == 0;
}

static const char* churn(unsigned char* memory) {
  for (size_t c = 0; c < kChunks; ++c) {
    void* free_place = mmap(NULL, kChunkBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char* at =
        mremap(memory + c * kChunkBytes, kChunkBytes, kChunkBytes, MREMAP_MAYMOVE | MREMAP_FIXED, free_place);
    if (at == MAP_FAILED) return "mremap";
    if (c % 4 == 0 && !child_sees(at, c * kChunkBytes)) return "child";
    madvise(at, kChunkBytes / 2, MADV_DONTNEED);
    for (size_t i = 0; i < kChunkBytes; ++i)
      if (at[i] != (i < kChunkBytes / 2 ? 0 : pattern(c * kChunkBytes + i))) return "bytes";
    munmap(at, kChunkBytes);
  }
  return NULL;
}

int main(void) {
  static char line[64];
  unsigned char* memory =
      mmap(NULL, kChunks * kChunkBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (size_t i = 0; i < kChunks * kChunkBytes; ++i) memory[i] = pattern(i);
  sem_init(&begun, 0, 0);
  semaphores = semget(IPC_PRIVATE, 1, 0600);
  if (semaphores < 0) return 1;
  for (long i = 0; i < kThreads; ++i) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_long, (void*)i) != 0) return 1;
    sem_wait(&begun);
  }
  puts("ready");
  fflush(stdout);
  const char* wrong = fgets(line, sizeof line, stdin) == NULL ? "no line" : churn(memory);
  usleep(200 * 1000);
  const int woke = ended, error = error_of_ended;
  semctl(semaphores, 0, IPC_RMID);
  if (wrong != NULL)
    printf("%s\n", wrong);
  else if (woke >= 0)
    printf("wait %d ended: %s\n", woke, strerror(error));
  else
    puts("ok");
  fflush(stdout);
  return 0;
}
