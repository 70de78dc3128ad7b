// Rings over memory that is being taken: registered buffers, reads and writes in flight, a kernel thread that
// submits by itself, and workers that change mappings. See hostile.c.
#define _GNU_SOURCE
#include "hostile_rings.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { kPage = 4096, kEntries = 64, kBuffers = 32, kBufferPages = 8 };

struct ring {
  int fd;
  unsigned flags;
  unsigned char *sq, *cq;
  struct io_uring_sqe* sqes;
  struct io_uring_params p;
};

static void* mapped(size_t bytes, int fd, off_t at) {
  void* const p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, at);
  return p == MAP_FAILED ? NULL : p;
}

static int make_ring(struct ring* r, unsigned flags) {
  memset(r, 0, sizeof *r);
  r->p.flags = flags;
  r->p.sq_thread_idle = 1;
  r->flags = flags;
  r->fd = (int)syscall(SYS_io_uring_setup, kEntries, &r->p);
  if (r->fd < 0) return -1;
  r->sq = mapped(r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t), r->fd, IORING_OFF_SQ_RING);
  r->cq = mapped(r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe), r->fd, IORING_OFF_CQ_RING);
  r->sqes = mapped(r->p.sq_entries * sizeof(struct io_uring_sqe), r->fd, IORING_OFF_SQES);
  if (r->sq && r->cq && r->sqes) return 0;
  close(r->fd);
  return -1;
}

static _Atomic uint32_t* at(unsigned char* base, uint32_t offset) {
  return (_Atomic uint32_t*)(base + offset);
}

// Puts one request into the ring; drops it when the ring is full.
static void push(struct ring* r, struct io_uring_sqe wanted) {
  const uint32_t tail = *at(r->sq, r->p.sq_off.tail), mask = *at(r->sq, r->p.sq_off.ring_mask);
  if (tail - *at(r->sq, r->p.sq_off.head) >= r->p.sq_entries) return;
  r->sqes[tail & mask] = wanted;
  ((uint32_t*)(r->sq + r->p.sq_off.array))[tail & mask] = tail & mask;
  atomic_store_explicit(at(r->sq, r->p.sq_off.tail), tail + 1, memory_order_release);
}

static void submit(struct ring* r) {
  const uint32_t waiting = *at(r->sq, r->p.sq_off.tail) - *at(r->sq, r->p.sq_off.head);
  const unsigned wake = r->flags & IORING_SETUP_SQPOLL ? IORING_ENTER_SQ_WAKEUP : 0;
  if (!wake || *at(r->sq, r->p.sq_off.flags) & IORING_SQ_NEED_WAKEUP)
    syscall(SYS_io_uring_enter, r->fd, waiting, 0, wake, NULL, 0);
  atomic_store(at(r->cq, r->p.cq_off.head), *at(r->cq, r->p.cq_off.tail));  // nobody reads how they ended
}

static void register_buffers(struct ring* r, unsigned char* area, size_t pages, unsigned seed) {
  struct iovec buffers[kBuffers];
  for (unsigned i = 0; i < kBuffers; ++i)
    buffers[i] =
        (struct iovec){area + (seed + i * 37) % (pages - kBufferPages) * kPage, kBufferPages * kPage};
  syscall(SYS_io_uring_register, r->fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
  syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_BUFFERS, buffers, kBuffers);
}

int storm_of_rings(unsigned char* area, size_t pages) {
  struct ring rings[3];
  int made = 0, pipes[2];
  if (pipe2(pipes, O_CLOEXEC)) return -1;
  const int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY);
  static const unsigned kinds[] = {0, IORING_SETUP_SQPOLL, 0};
  for (int i = 0; i < 3; ++i)
    if (make_ring(&rings[made], kinds[i]) == 0) ++made;
  if (made == 0) return -1;
  for (unsigned round = 0;; ++round) {
    struct ring* const r = &rings[round % (unsigned)made];
    if (round % 200 < (unsigned)made) register_buffers(r, area, pages, round);
    for (int i = 0; i < 16; ++i) {
      unsigned char* const to = area + (size_t)(rand() % (int)(pages - 16)) * kPage;
      struct io_uring_sqe sqe;
      memset(&sqe, 0, sizeof sqe);
      sqe.addr = (uintptr_t)to;
      sqe.len = 8 * kPage;
      sqe.off = (uint64_t)-1;
      switch (i % 8) {
        case 0:  // lies in the kernel until somebody writes into the pipe
          sqe.opcode = IORING_OP_READ, sqe.fd = pipes[0], sqe.len = kPage;
          break;
        case 1: sqe.opcode = IORING_OP_READ, sqe.fd = zero, sqe.flags = IOSQE_ASYNC; break;
        case 2:
          sqe.opcode = IORING_OP_READ_FIXED, sqe.fd = zero, sqe.buf_index = (uint16_t)(i % kBuffers);
          break;
        case 3:
          sqe.opcode = IORING_OP_WRITE_FIXED, sqe.fd = null, sqe.buf_index = (uint16_t)(rand() % kBuffers);
          sqe.flags = IOSQE_ASYNC;
          break;
        case 4:
          sqe.opcode = IORING_OP_MADVISE, sqe.fd = -1, sqe.off = 0;
          sqe.fadvise_advice = MADV_DONTNEED, sqe.flags = IOSQE_ASYNC;
          break;
        case 5: sqe.opcode = IORING_OP_WRITE, sqe.fd = pipes[1], sqe.len = 64; break;
        case 6:  // whatever lies there now, the userfaultfd among it
          sqe.opcode = IORING_OP_READ, sqe.fd = 3 + rand() % 30, sqe.len = 64, sqe.flags = IOSQE_ASYNC;
          break;
        default: sqe.opcode = IORING_OP_WRITE, sqe.fd = null, sqe.flags = IOSQE_ASYNC;
      }
      push(r, sqe);
    }
    submit(r);
    if (round % 64 == 63 && made > 2) {  // and one that ends with requests in it
      close(rings[made - 1].fd);
      if (make_ring(&rings[made - 1], 0)) --made;
    }
    const struct timespec nap = {0, 300000};
    nanosleep(&nap, NULL);
  }
}
