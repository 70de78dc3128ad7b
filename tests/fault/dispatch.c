// Hands its system calls to itself (syscall user dispatch) while it computes, until SIGUSR1; then says how many of them came
// and answers lines.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char blocked;
static volatile sig_atomic_t dispatched, enough;

static void on_dispatch(int number) {
  (void)number;
  blocked = 0;  // or this handler could not return
  ++dispatched;
}

static void on_enough(int number) {
  (void)number;
  blocked = 0;
  enough = 1;
}

int main(void) {
  char line[64];
  signal(SIGSYS, on_dispatch);
  signal(SIGUSR1, on_enough);
  if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &blocked) != 0) return 1;
  puts("ready");
  fflush(stdout);
  blocked = 1;
  while (!enough) {
  }
  const int before = dispatched;
  blocked = 1;
  getppid();
  printf("%d before, %d after\n", before, dispatched);
  for (fflush(stdout); fgets(line, sizeof line, stdin) != NULL; fflush(stdout)) puts("ok");
  return 0;
}
