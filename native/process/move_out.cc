#include "live/move_out.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "common/error.h"
#include "common/fault_point.h"
#include "live/injection_area.h"

namespace medes {
namespace {

// Kernel interface of Linux 6.8; the C library's headers here are older.
struct Move {
  uint64_t to, from, bytes, mode;
  int64_t moved;
};
static_assert(sizeof(Move) == 40);
constexpr unsigned long kMove = _IOWR(0xAA, 0x05, Move);
constexpr uint64_t kAllowHoles = 2, kFeatureMove = 1u << 16;

constexpr uint64_t kPlaceBytes = 4u << 20;
constexpr int kRetries = 64;              // of a page that is being looked at by somebody
constexpr uint64_t kPinnedInARow = 1024;  // then the rest of that mapping counts as pinned

constexpr uint32_t kEnterRegisteredRing = 1u << 4;

}  // namespace

bool can_move_out() {
  static const bool can = [] {
    const UniqueFd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
    uffdio_api api{};
    api.api = UFFD_API;
    return fd && ioctl(fd.get(), UFFDIO_API, &api) == 0 && (api.features & kFeatureMove) != 0;
  }();
  return can;
}

bool uses_io_uring(Injector& injector, std::span<const Tracee> threads) {
  for (const auto& t : threads)
    if (registers_of(t).orig_rax == SYS_io_uring_enter) return true;
  // Of nothing, on the first of the thread's registered rings: EINVAL says that it never had any ring.
  const uint64_t arguments[] = {0, 0, 0, kEnterRegisteredRing, 0, 0};
  const long result = injector.call(SYS_io_uring_enter, arguments);
  return result >= 0 || result == -EBADF || result == -EBADFD || result == -EBUSY;
}

std::vector<AddressRange> MoveOut::move(std::span<const AddressRange> ranges, std::span<const Vma> vmas) {
  auto v = vmas.begin();
  for (const AddressRange& r : ranges) {
    // One move stays in one mapping.
    for (uint64_t at = r.begin; at < r.end;) {
      while (v != vmas.end() && v->end <= at) ++v;
      if (v == vmas.end() || v->begin > at) break;
      const uint64_t end = std::min(r.end, v->end);
      if (place_ != 0 && prot_ != v->prot) unmap();
      if (place_ == 0) map(v->prot);
      move_part({at, end});
      at = end;
    }
  }
  unmap();
  return std::move(stay_);
}

void MoveOut::move_part(const AddressRange& part) {
  uint64_t in_a_row = 0;
  int tries = 0;
  for (uint64_t at = part.begin; at < part.end;) {
    if (used_ == kPlaceBytes) give_back();
    const int64_t moved = move_once(at, std::min(part.end - at, kPlaceBytes - used_));
    if (moved > 0) {
      at += static_cast<uint64_t>(moved), used_ += static_cast<uint64_t>(moved);
      in_a_row = 0, tries = 0;
      continue;
    }
    if (moved == -ESRCH) throw Error(Code::process_gone, "the process was killed");
    if (moved == -EAGAIN && ++tries < kRetries) continue;
    tries = 0;
    const uint64_t end = ++in_a_row < kPinnedInARow ? at + kPageBytes : part.end;
    stays(at, end);
    at = end;
  }
}

// How many bytes went, or -errno of why the first page does not.
int64_t MoveOut::move_once(uint64_t from, uint64_t bytes) {
  Move move{place_ + used_, from, bytes, kAllowHoles, 0};
  injector_.write_scratch(0, &move, sizeof move);
  const uint64_t arguments[] = {static_cast<uint64_t>(fd_), kMove, injector_.scratch()};
  const long result = call_(SYS_ioctl, arguments);
  if (result == 0) return static_cast<int64_t>(bytes);
  injector_.read_scratch(0, &move, sizeof move);
  return move.moved != 0 ? move.moved : result;
}

void MoveOut::map(uint32_t prot) {
  const uint64_t arguments[] = {0, kPlaceBytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, ~0ull, 0};
  const long at = call_(SYS_mmap, arguments);
  if (at < 0)
    throw errno_error(static_cast<int>(-at), "the sandbox could not map memory to move its pages through");
  place_ = static_cast<uint64_t>(at), used_ = 0, prot_ = prot;
  note(kPlaceBytes);
  const int err = uffd_.register_missing(place_, place_ + kPlaceBytes);
  if (err != 0) throw errno_error(err, "memory to move pages through cannot be registered");
}

void MoveOut::give_back() {
  fault_point("evict.moved");
  const uint64_t arguments[] = {place_, kPlaceBytes, MADV_DONTNEED};
  if (const long failed = call_(SYS_madvise, arguments); failed != 0)
    throw errno_error(static_cast<int>(-failed), "moved pages cannot be given back");
  used_ = 0;
}

void MoveOut::unmap() {
  if (place_ == 0) return;
  fault_point("evict.moved");
  note(0);  // before: what may be the program's by then is never unmapped
  const uint64_t arguments[] = {place_, kPlaceBytes};
  if (const long failed = call_(SYS_munmap, arguments); failed != 0)
    throw errno_error(static_cast<int>(-failed), "moved pages cannot be unmapped");
  place_ = 0;
}

void MoveOut::note(uint64_t bytes) const {
  if (const auto area = InjectionArea::find(pid_))
    area->note_place(pid_, bytes == 0 ? AddressRange{} : AddressRange{place_, place_ + bytes});
}

bool MoveOut::unmap_left() {
  const auto area = InjectionArea::find(pid_);
  const AddressRange left = area ? area->noted_place(pid_) : AddressRange{};
  if (left.begin % kPageBytes != 0 || left.begin == 0 || left.end != left.begin + kPlaceBytes) return false;
  place_ = left.begin;
  unmap();
  return true;
}

void MoveOut::stays(uint64_t begin, uint64_t end) {
  if (!stay_.empty() && stay_.back().end == begin)
    stay_.back().end = end;
  else
    stay_.push_back({begin, end});
}

}  // namespace medes
