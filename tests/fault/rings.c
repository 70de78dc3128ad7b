// Rings whose memory the kernel holds on to without saying so. For each line on its input it uses the ring,
// and prints what came of it and a sum over ordinary memory.
// usage: rings hole|provided|own|alone
//   hole      a registered buffer behind empty slots of the table
//   provided  a ring of provided buffers in the program's own memory
//   own       submission and completion queue in the program's own memory
//   alone     the same, and no descriptor but a registered one
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kOrdinary = 8 << 20, kBuffer = 1 << 20, kNoMmap = 1 << 14, kFdOnly = 1 << 15, kEntered = 1 << 4 };
enum { kRegisterBuffers2 = 15, kUpdateBuffers = 16, kRegisterBufferRing = 22, kSparse = 1, kSlot = 2, kGroup = 7 };

static struct io_uring_params q;
static unsigned char *sq, *cq;
static struct io_uring_sqe *sqes;
static int ring, enter_flags;

static void *own(size_t bytes) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) exit(1);
  memset(p, 0, bytes);
  return p;
}

static void *shared(size_t bytes, off_t offset) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, offset);
  if (p == MAP_FAILED) exit(1);
  return p;
}

static void registered(int operation, void *argument, unsigned count) {
  if (syscall(SYS_io_uring_register, ring, operation, argument, count) < 0) exit(1);
}

static struct io_uring_sqe *entry(void) {
  const uint32_t slot = *(uint32_t *)(sq + q.sq_off.tail) & *(uint32_t *)(sq + q.sq_off.ring_mask);
  memset(&sqes[slot], 0, sizeof sqes[slot]);
  ((uint32_t *)(sq + q.sq_off.array))[slot] = slot;
  return &sqes[slot];
}

// The result of the one request; a number below -1000 when no completion shows.
static int done(uint64_t *user_data) {
  atomic_fetch_add((_Atomic uint32_t *)(sq + q.sq_off.tail), 1);
  if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS | enter_flags, NULL, 0) != 1) return -1001;
  const uint32_t head = *(uint32_t *)(cq + q.cq_off.head);
  if (atomic_load((_Atomic uint32_t *)(cq + q.cq_off.tail)) == head) return -1002;
  const struct io_uring_cqe *all = (void *)(cq + q.cq_off.cqes);
  const struct io_uring_cqe *one = &all[head & *(uint32_t *)(cq + q.cq_off.ring_mask)];
  *user_data = one->user_data;
  const int result = one->res;
  atomic_store((_Atomic uint32_t *)(cq + q.cq_off.head), head + 1);
  return result;
}

int main(int argc, char **argv) {
  const char *how = argc == 2 ? argv[1] : "";
  const int alone = strcmp(how, "alone") == 0, hole = strcmp(how, "hole") == 0;
  const int provided = strcmp(how, "provided") == 0;
  unsigned char *memory = own(65536);
  if (alone || strcmp(how, "own") == 0) {
    sqes = own(4096), sq = cq = memory;
    q.flags = kNoMmap | (alone ? kFdOnly : 0);
    q.cq_off.resv2 = (uintptr_t)memory, q.sq_off.resv2 = (uintptr_t)sqes;
    enter_flags = alone ? kEntered : 0;
  }
  ring = (int)syscall(SYS_io_uring_setup, 4, &q);
  if (ring < 0) {
    puts("no such ring");
    return 1;
  }
  if (sq == NULL) {
    sq = shared(q.sq_off.array + q.sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING);
    cq = shared(q.cq_off.cqes + q.cq_entries * sizeof(struct io_uring_cqe), IORING_OFF_CQ_RING);
    sqes = shared(q.sq_entries * sizeof *sqes, IORING_OFF_SQES);
  }
  unsigned char *ordinary = own(kOrdinary), *buffer = own(kBuffer);
  for (size_t i = 0; i < kOrdinary; ++i) ordinary[i] = (unsigned char)(i * 2654435761u >> 13);
  struct io_uring_buf *buffers = own(4096);
  int ends[2], file = open("/proc/self/exe", O_RDONLY);
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
  if (hole) {
    struct io_uring_rsrc_register table = {.nr = 4, .flags = kSparse};
    registered(kRegisterBuffers2, &table, sizeof table);
    const struct iovec io = {buffer, kBuffer};
    struct io_uring_rsrc_update2 update = {.offset = kSlot, .data = (uintptr_t)&io, .nr = 1};
    registered(kUpdateBuffers, &update, sizeof update);
  }
  if (provided) {
    struct io_uring_buf_reg where = {.ring_addr = (uintptr_t)buffers, .ring_entries = 8, .bgid = kGroup};
    registered(kRegisterBufferRing, &where, 1);
  }
  printf("ready\n");
  fflush(stdout);
  char line[64];
  for (uint16_t n = 0; fgets(line, sizeof line, stdin) != NULL; ++n) {
    struct io_uring_sqe *s = entry();
    unsigned char wanted[4096] = "hello";
    int right = 1;
    s->user_data = n + 1000u;
    if (hole) {
      if (pread(file, wanted, sizeof wanted, n * 4096) != sizeof wanted) return 1;
      s->opcode = IORING_OP_READ_FIXED, s->fd = file, s->off = n * 4096u;
      s->addr = (uintptr_t)buffer, s->len = sizeof wanted, s->buf_index = kSlot;
    } else if (provided) {
      struct io_uring_buf *b = &buffers[n % 8];
      b->addr = (uintptr_t)buffer, b->len = 4096, b->bid = n;
      atomic_store((_Atomic uint16_t *)((char *)buffers + 14), (uint16_t)(n + 1));
      if (write(ends[1], "hello", 5) != 5) return 1;
      s->opcode = IORING_OP_RECV, s->fd = ends[0], s->len = 4096;
      s->flags = IOSQE_BUFFER_SELECT, s->buf_group = kGroup;
    }
    uint64_t user_data = 0;
    const int result = done(&user_data);
    right &= user_data == n + 1000u;
    if (hole || provided) right &= result > 0 && memcmp(buffer, wanted, (size_t)result) == 0;
    for (size_t i = 0; i < kOrdinary; ++i) right &= ordinary[i] == (unsigned char)(i * 2654435761u >> 13);
    printf("%d %s\n", n, right && result >= 0 ? "right" : "WRONG");
    fflush(stdout);
  }
  return 0;
}
