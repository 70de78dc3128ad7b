// A program that does to its memory whatever Linux allows, and checks every byte of it, while somebody dedups
// and restores it. Each thread owns its regions, knows what each page must hold, and stops the program at the
// first byte that is wrong.
//
// usage: stress THREADS SEED; then, on stdin, "go N" (N steps in each thread, answered by "N ok") or
// "run MS" (for so long). Ends at end of input.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, REGIONS = 12, MAX_PAGES = 96, MAX_THREADS = 16 };
extern char** environ;

typedef struct {
  char* base;
  int pages;
  uint32_t tag[MAX_PAGES];  // what each page holds; 0: zeros
} Region;

typedef struct {
  pthread_t thread;
  int id;
  uint64_t random;
  Region regions[REGIONS];
  uint64_t steps, forks, moves;
} Worker;

static Worker workers[MAX_THREADS];
static int thread_count;
static volatile sig_atomic_t ticks;
static int64_t deadline_ms;
static uint64_t steps_wanted;

static int64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static uint32_t draw(Worker* w, uint32_t below) {
  w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
  return (uint32_t)(w->random >> 33) % below;
}

static uint64_t word_of(uint32_t tag, int i) { return tag ? (uint64_t)tag * 0x9e3779b97f4a7c15ull + (uint64_t)i * tag : 0; }

static void fail(const char* what, const Worker* w, int region, int page, int at) {
  printf("BROKEN %s: thread %d region %d page %d byte %d step %llu\n", what, w->id, region, page, at,
         (unsigned long long)w->steps);
  if (region >= 0) {
    const Region* r = &w->regions[region];
    const uint64_t* p = (const uint64_t*)(r->base + (size_t)page * PAGE);
    printf("region of %d pages at %p: found %llx, tag %x means %llx\n", r->pages, (void*)r->base,
           (unsigned long long)p[at / 8], r->tag[page], (unsigned long long)word_of(r->tag[page], at / 8));
    for (int i = 0; i < REGIONS; ++i)
      for (int k = 0; k < w->regions[i].pages; ++k)
        if (p[1] != 0 && p[1] == word_of(w->regions[i].tag[k], 1)) printf("it is what region %d page %d holds\n", i, k);
  }
  fflush(stdout);
  abort();
}

static void fill(Region* r, int page, uint32_t tag) {
  uint64_t* p = (uint64_t*)(r->base + (size_t)page * PAGE);
  for (int i = 0; i < PAGE / 8; ++i) p[i] = word_of(tag, i);
  r->tag[page] = tag;
}

static void check_page(Worker* w, int region, int page, const char* where) {
  const Region* r = &w->regions[region];
  const uint64_t* p = (const uint64_t*)(r->base + (size_t)page * PAGE);
  for (int i = 0; i < PAGE / 8; ++i)
    if (p[i] != word_of(r->tag[page], i)) fail(where, w, region, page, i * 8);
}

static void check_region(Worker* w, int region, const char* where) {
  for (int i = 0; i < w->regions[region].pages; ++i) check_page(w, region, i, where);
}

static void* map(int pages, int flags, void* at) {
  void* p = mmap(at, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (p == MAP_FAILED) {
    perror("mmap");
    abort();
  }
  return p;
}

static void renew(Worker* w, int region) {
  Region* r = &w->regions[region];
  if (r->base) munmap(r->base, (size_t)r->pages * PAGE);
  r->pages = 1 + (int)draw(w, MAX_PAGES / 2);
  r->base = map(r->pages, 0, NULL);
  memset(r->tag, 0, sizeof r->tag);
  for (int i = 0; i < r->pages; ++i)
    if (draw(w, 4)) fill(r, i, 1 + draw(w, 1u << 30));
}

static void resize(Worker* w, int region) {
  Region* r = &w->regions[region];
  const int pages = 1 + (int)draw(w, MAX_PAGES);
  void* p = mremap(r->base, (size_t)r->pages * PAGE, (size_t)pages * PAGE, MREMAP_MAYMOVE);
  if (p == MAP_FAILED) return;
  for (int i = r->pages; i < pages; ++i) r->tag[i] = 0;
  r->base = p;
  r->pages = pages;
  ++w->moves;
}

static void move(Worker* w, int region) {
  Region* r = &w->regions[region];
  const size_t length = (size_t)r->pages * PAGE;
  void* to = map(r->pages, 0, NULL);
  void* p = mremap(r->base, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to);
  if (p == MAP_FAILED) {
    perror("mremap");
    abort();
  }
  r->base = p;
  ++w->moves;
}

static void drop_pages(Worker* w, int region) {
  Region* r = &w->regions[region];
  const int first = (int)draw(w, (uint32_t)r->pages);
  const int count = 1 + (int)draw(w, (uint32_t)(r->pages - first));
  if (madvise(r->base + (size_t)first * PAGE, (size_t)count * PAGE, MADV_DONTNEED) != 0) {
    perror("madvise");
    abort();
  }
  for (int i = first; i < first + count; ++i) r->tag[i] = 0;
}

static void unmap_tail(Worker* w, int region) {
  Region* r = &w->regions[region];
  if (r->pages < 2) return;
  const int keep = 1 + (int)draw(w, (uint32_t)r->pages - 1);
  munmap(r->base + (size_t)keep * PAGE, (size_t)(r->pages - keep) * PAGE);
  r->pages = keep;
}

static void protect(Worker* w, int region) {
  Region* r = &w->regions[region];
  const size_t length = (size_t)r->pages * PAGE;
  mprotect(r->base, length, PROT_NONE);
  mprotect(r->base, length, PROT_READ);
  check_page(w, region, (int)draw(w, (uint32_t)r->pages), "protect");
  mprotect(r->base, length, PROT_READ | PROT_WRITE);
}

static void expect_child(pid_t child, Worker* w, const char* what) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail(what, w, -1, -1, status);
}

static void fork_and_check(Worker* w) {
  const pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < REGIONS; ++i) check_region(w, i, "forked child");
    for (int i = 0; i < REGIONS; ++i) fill(&w->regions[i], 0, 77);  // the parent must not see this
    _exit(0);
  }
  if (child > 0) expect_child(child, w, "fork");
  ++w->forks;
}

static void spawn_and_wait(Worker* w) {
  char* const arguments[] = {"/bin/true", NULL};
  pid_t child = 0;
  if (posix_spawn(&child, arguments[0], NULL, NULL, arguments, environ) == 0) expect_child(child, w, "spawn");
}

static void* short_life(void* argument) {
  char* block = malloc(200000);
  memset(block, 0x5a, 200000);
  const long sum = block[0] + block[199999];
  free(block);
  return (void*)((intptr_t)argument + sum - 2 * 0x5a);
}

static void thread_and_join(Worker* w) {
  pthread_t t;
  void* result = NULL;
  if (pthread_create(&t, NULL, short_life, (void*)(intptr_t)(w->id + 1)) != 0) return;
  pthread_join(t, &result);
  if (result != (void*)(intptr_t)(w->id + 1)) fail("thread", w, -1, -1, 0);
}

static void step(Worker* w) {
  const int region = (int)draw(w, REGIONS);
  switch (draw(w, 32)) {
    case 0: renew(w, region); break;
    case 1: resize(w, region); break;
    case 2: move(w, region); break;
    case 3: case 4: drop_pages(w, region); break;
    case 5: unmap_tail(w, region); break;
    case 6: protect(w, region); break;
    case 7: if (draw(w, 8) == 0) fork_and_check(w); break;
    case 8: if (draw(w, 16) == 0) spawn_and_wait(w); break;
    case 9: thread_and_join(w); break;
    case 10: usleep(draw(w, 2000)); break;
    case 11: check_region(w, region, "whole region"); break;
    default: {
      Region* r = &w->regions[region];
      const int page = (int)draw(w, (uint32_t)r->pages);
      check_page(w, region, page, "page");
      if (draw(w, 2)) fill(r, page, 1 + draw(w, 1u << 30));
    }
  }
  ++w->steps;
}

static void* work(void* argument) {
  Worker* w = argument;
  for (uint64_t i = 0; deadline_ms ? now_ms() < deadline_ms : i < steps_wanted; ++i) step(w);
  for (int i = 0; i < REGIONS; ++i) check_region(w, i, "end of round");
  return NULL;
}

static void on_alarm(int signal_number) {
  (void)signal_number;
  ++ticks;
}

int main(int argc, char** argv) {
  thread_count = argc > 1 ? atoi(argv[1]) : 2;
  if (thread_count < 1 || thread_count > MAX_THREADS) return 2;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_alarm;
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, NULL);
  for (int t = 0; t < thread_count; ++t) {
    workers[t].id = t;
    workers[t].random = seed * 1000 + (uint64_t)t;
    for (int i = 0; i < REGIONS; ++i) renew(&workers[t], i);
  }
  printf("ready\n");
  fflush(stdout);
  char line[128];
  for (int round = 1; fgets(line, sizeof line, stdin); ++round) {
    unsigned long long amount = 0;
    char verb[16];
    if (sscanf(line, "%15s %llu", verb, &amount) != 2) return 2;
    deadline_ms = strcmp(verb, "run") == 0 ? now_ms() + (int64_t)amount : 0;
    steps_wanted = amount;
    struct itimerval every = {{0, 7000}, {0, 7000}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &every, NULL);
    for (int t = 0; t < thread_count; ++t) pthread_create(&workers[t].thread, NULL, work, &workers[t]);
    for (int t = 0; t < thread_count; ++t) pthread_join(workers[t].thread, NULL);
    setitimer(ITIMER_REAL, &never, NULL);
    uint64_t steps = 0, forks = 0, moves = 0;
    for (int t = 0; t < thread_count; ++t)
      steps += workers[t].steps, forks += workers[t].forks, moves += workers[t].moves;
    printf("%d ok steps=%llu forks=%llu moves=%llu ticks=%d\n", round, (unsigned long long)steps,
           (unsigned long long)forks, (unsigned long long)moves, (int)ticks);
    fflush(stdout);
  }
  return 0;
}
