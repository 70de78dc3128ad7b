// Begins itself anew when told to, in the same process, with the same bytes at the same addresses.
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 2048, TOUCHED = 512, WORDS = 512 };
static uint64_t* const arena = (uint64_t*)0x200000000;

static uint64_t word(long page, long k) { return page * 1000003ull + k * 7 + 1; }

int main(int argc, char** argv) {
  (void)argc;
  if (mmap(arena, PAGES * 4096L, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
           -1, 0) != arena)
    return 1;
  for (long p = 0; p < PAGES; ++p)
    for (long k = 0; k < WORDS; ++k) arena[p * WORDS + k] = word(p, k);
  puts("ready");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin) != NULL) {
    long wrong = 0;
    if (line[0] == 'e') execv("/proc/self/exe", argv);
    for (long p = 0; p < (line[0] == 't' ? TOUCHED : PAGES); ++p)
      for (long k = 0; k < (line[0] == 't' ? 1 : WORDS); ++k) wrong += arena[p * WORDS + k] != word(p, k);
    printf("0 %ld\n", wrong);
    fflush(stdout);
  }
  return 0;
}
