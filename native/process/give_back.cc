#include "process/give_back.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/error.h"
#include "common/fault_point.h"

namespace medes {
namespace {

constexpr uint64_t kPidfdSelf =
    static_cast<uint64_t>(-10000);  // PIDFD_SELF_THREAD; the headers here are older
constexpr size_t kDiscardsPerCall = Injector::kScratchBytes / sizeof(iovec);

}  // namespace

void GiveBack::run(std::span<const AddressRange> ranges) {
  try {
    if (p_.may_pin.empty())
      discard(ranges);
    else
      move_out(ranges);
  } catch (const Error& e) {
    if (e.code != Code::busy) throw;
    keep(ranges);
    notes_.push_back(p_.object() + ": some of its pages stay: " + e.what());
  }
}

// An injected call costs some wake-ups of two threads, so one call gives back as many ranges as the kernel
// lets it.
void GiveBack::discard(std::span<const AddressRange> ranges) {
  for (size_t i = 0; i < ranges.size();) {
    const size_t together =
        discard_together(ranges.subspan(i, std::min(ranges.size() - i, kDiscardsPerCall)));
    i += together;
    if (together == 0) discard_alone(ranges[i++]);
  }
}

long GiveBack::call_and_drain(long number, std::span<const uint64_t> arguments) {
  uffd_msg messages[16];
  // The call waits until its events have been read. Nobody but us can be their sender: all threads stand
  // still. Faults are of readers outside (process_vm_readv, /proc/PID/mem), who wait for what we answer.
  const long result = p_.injector->call_alone(number, arguments, [&] {
    fault_point("evict.discarding");
    const size_t n = uffd_.read_events(messages);
    for (size_t i = 0; i < n; ++i)
      if (messages[i].event == UFFD_EVENT_PAGEFAULT) p_.faults.push_back(messages[i].arg.pagefault.address);
    if (n == 0) sched_yield();
  });
  fault_point("evict.discarded_one");
  return result;
}

// Returns how many ranges, from the first on, are given back: none where the kernel cannot (Linux
// before 6.14), or where the first one has to be looked at by itself.
size_t GiveBack::discard_together(std::span<const AddressRange> ranges) {
  if (!discards_together_ || ranges.size() < 2) return 0;
  iovec vector[kDiscardsPerCall];
  for (size_t i = 0; i < ranges.size(); ++i)
    vector[i] = {reinterpret_cast<void*>(ranges[i].begin), ranges[i].end - ranges[i].begin};
  p_.injector->write_scratch(0, vector, ranges.size() * sizeof(iovec));
  const uint64_t arguments[] = {kPidfdSelf, p_.injector->scratch(), ranges.size(), MADV_DONTNEED, 0};
  const long bytes = call_and_drain(SYS_process_madvise, arguments);
  if (bytes == -EBADF || bytes == -ENOSYS) discards_together_ = false;
  uint64_t left = bytes > 0 ? static_cast<uint64_t>(bytes) : 0;
  size_t done = 0;
  for (; done < ranges.size() && vector[done].iov_len <= left; ++done) left -= vector[done].iov_len;
  return done;
}

void GiveBack::discard_alone(const AddressRange& r) {
  const uint64_t arguments[] = {r.begin, r.end - r.begin, MADV_DONTNEED};
  const long failed = call_and_drain(SYS_madvise, arguments);
  if (failed == 0) return;
  // Locked between our look and now, or guarded: whatever is still there stays the sandbox's own.
  notes_.push_back(p_.object() + ": a range could not be given back (" +
                   std::strerror(static_cast<int>(-failed)) + ")");
  keep({&r, 1});
}

MoveOut GiveBack::mover() {
  return {*p_.injector, p_.pid, uffd_, uffd_in_process_,
          [&](long number, auto arguments) { return call_and_drain(number, arguments); }};
}

void GiveBack::move_out(std::span<const AddressRange> ranges) {
  const auto stay = mover().move(ranges, p_.vmas);
  keep(stay);
  uint64_t pages = 0;
  for (const AddressRange& r : stay) pages += (r.end - r.begin) / kPageBytes;
  notes_.push_back(p_.object() + ": " + std::to_string(pages) + " pages that " + p_.may_pin +
                   " may hold on to stay resident");
}

void GiveBack::keep(std::span<const AddressRange> ranges) {
  std::vector<PageSpan> there;
  for (const AddressRange& r : ranges) Pagemap(p_.pid).present_pages(r.begin, r.end, there);
  stays_(there);
}

}  // namespace medes
