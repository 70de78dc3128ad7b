// A program with a buffer registered with io_uring. For each line on its input it lets the ring read the file
// named by its argument into that buffer, and prints a sum over the buffer and one over ordinary memory.
// usage: uring FILE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kBuffer = 1 << 20, kOrdinary = 8 << 20 };

static unsigned char *map(size_t bytes, int fd, off_t offset, int flags) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, offset);
  if (p == MAP_FAILED) exit(1);
  return p;
}

static uint64_t sum(const unsigned char *p, size_t bytes) {
  uint64_t s = 14695981039346656037u;
  for (size_t i = 0; i < bytes; ++i) s = (s ^ p[i]) * 1099511628211u;
  return s;
}

int main(int argc, char **argv) {
  struct io_uring_params q;
  memset(&q, 0, sizeof q);
  const int ring = argc == 2 ? (int)syscall(SYS_io_uring_setup, 4, &q) : -1;
  if (ring < 0) {
    puts("no io_uring");
    return 1;
  }
  const int shared = MAP_SHARED | MAP_POPULATE, private = MAP_PRIVATE | MAP_ANONYMOUS;
  unsigned char *sq = map(q.sq_off.array + q.sq_entries * sizeof(uint32_t), ring, IORING_OFF_SQ_RING, shared);
  unsigned char *cq =
      map(q.cq_off.cqes + q.cq_entries * sizeof(struct io_uring_cqe), ring, IORING_OFF_CQ_RING, shared);
  struct io_uring_sqe *sqes = (void *)map(q.sq_entries * sizeof *sqes, ring, IORING_OFF_SQES, shared);
  unsigned char *buffer = map(kBuffer, -1, 0, private), *ordinary = map(kOrdinary, -1, 0, private);
  for (size_t i = 0; i < kOrdinary; ++i) ordinary[i] = (unsigned char)(i * 2654435761u >> 13);
  const struct iovec io = {buffer, kBuffer};
  if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &io, 1) != 0) return 1;
  const int file = open(argv[1], O_RDONLY);
  printf("ready\n");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin) != NULL) {
    const uint32_t tail = *(uint32_t *)(sq + q.sq_off.tail), slot = tail & *(uint32_t *)(sq + q.sq_off.ring_mask);
    memset(&sqes[slot], 0, sizeof sqes[slot]);
    sqes[slot].opcode = IORING_OP_READ_FIXED;
    sqes[slot].fd = file;
    sqes[slot].addr = (uintptr_t)buffer;
    sqes[slot].len = kBuffer;
    ((uint32_t *)(sq + q.sq_off.array))[slot] = slot;
    atomic_store_explicit((_Atomic uint32_t *)(sq + q.sq_off.tail), tail + 1, memory_order_release);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1) return 1;
    const uint32_t head = *(uint32_t *)(cq + q.cq_off.head);
    const struct io_uring_cqe *cqes = (void *)(cq + q.cq_off.cqes);
    const int32_t got = cqes[head & *(uint32_t *)(cq + q.cq_off.ring_mask)].res;
    atomic_store_explicit((_Atomic uint32_t *)(cq + q.cq_off.head), head + 1, memory_order_release);
    printf("1 %d %016llx %016llx\n", got, (unsigned long long)sum(buffer, kBuffer),
           (unsigned long long)sum(ordinary, kOrdinary));
    fflush(stdout);
  }
  return 0;
}
