// Giving back memory of which the kernel or a device may hold pages: those that are pinned stay.
//
// A pin keeps the page, while the process would get another one after MADV_DONTNEED. UFFDIO_MOVE (Linux 6.8)
// puts a page to another address of the same process, and refuses one that is pinned, whoever has pinned it:
// so pages are moved onto memory of ours, a few megabytes at a time, and given back there.
#pragma once

#include <sys/types.h>

#include <functional>
#include <span>
#include <vector>

#include "image/image.h"
#include "serving/uffd.h"
#include "tracing/tracee.h"

namespace medes {

// Whether this kernel can.
bool can_move_out();

// Whether one of the threads has ever used io_uring; the first is the injector's. A ring needs neither a
// descriptor nor a mapping: it may be registered with the thread that made it, and lie in the program's own
// memory. Of other threads it is only seen while they wait in it.
bool uses_io_uring(Injector& injector, std::span<const Tracee> threads);

class MoveOut {
 public:
  // Runs a call in the process and answers its result, reading the events that it waits for.
  using Call = std::function<long(long number, std::span<const uint64_t> arguments)>;
  // `fd`: the userfaultfd's number in the process.
  // `pid`: has an injection area.
  MoveOut(Injector& injector, pid_t pid, const Uffd& uffd, int fd, Call call)
      : injector_(injector), pid_(pid), uffd_(uffd), fd_(fd), call_(std::move(call)) {}

  // Unmaps what an op that could not end has left. True when there was something.
  bool unmap_left(std::span<const Vma> vmas);

  // Returns what stays. Throws process_gone; limit_exceeded where the process can have no mapping more.
  std::vector<AddressRange> move(std::span<const AddressRange> ranges, std::span<const Vma> vmas);

 private:
  void move_part(const AddressRange& part);
  int64_t move_once(uint64_t from, uint64_t bytes);
  void map(uint32_t prot, std::span<const Vma> vmas);
  void unmap();
  void give_back();
  void keep_resident(uint64_t begin, uint64_t end);

  void record_place(const AddressRange& place) const;

  Injector& injector_;
  const pid_t pid_;
  const Uffd& uffd_;
  const int fd_;
  const Call call_;
  uint64_t place_ = 0, used_ = 0;  // memory of ours in the process, and how much of it is filled
  uint32_t prot_ = 0;
  std::vector<AddressRange> stay_;
};

}  // namespace medes
