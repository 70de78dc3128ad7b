#include "process/move_out.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "common/error.h"
#include "common/fault_point.h"
#include "tracing/injection_area.h"

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
// Where it lies: the kernel gives these addresses to nobody who does not ask for them. So it can be noted
// before it is there, and what is there by a note is ours.
constexpr uint64_t kPlaceAt = 0x4d44'4540'0000, kPlaces = 16;
constexpr int kRetries = 64;              // of a page that is being looked at by somebody
constexpr uint64_t kPinnedInARow = 1024;  // then the rest of that mapping counts as pinned

constexpr uint32_t kEnterRegisteredRing = 1u << 4;

AddressRange place_at(uint64_t index) {
  const uint64_t begin = kPlaceAt + index * 2 * kPlaceBytes;
  return {begin, begin + kPlaceBytes};
}

uint64_t free_place(std::span<const Vma> vmas) {
  for (uint64_t i = 0; i < kPlaces; ++i) {
    const AddressRange place = place_at(i);
    if (std::none_of(vmas.begin(), vmas.end(),
                     [&](const Vma& v) { return v.begin < place.end && place.begin < v.end; }))
      return place.begin;
  }
  throw Error(Code::limit_exceeded, "the sandbox has no address left to move its pages through");
}

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
      if (place_ == 0) map(v->prot, vmas);
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
    keep_resident(at, end);
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

void MoveOut::map(uint32_t prot, std::span<const Vma> vmas) {
  const uint64_t at = free_place(vmas);
  record_place({at, at + kPlaceBytes});
  const uint64_t arguments[] = {
      at, kPlaceBytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, ~0ull, 0};
  const long mapped = call_(SYS_mmap, arguments);
  if (mapped < 0)
    throw errno_error(static_cast<int>(-mapped),
                      "the sandbox could not map memory to move its pages through");
  place_ = at, used_ = 0, prot_ = prot;
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
  const uint64_t arguments[] = {place_, kPlaceBytes};
  if (const long failed = call_(SYS_munmap, arguments); failed != 0)
    throw errno_error(static_cast<int>(-failed), "moved pages cannot be unmapped");
  place_ = 0;
  record_place({});
}

void MoveOut::record_place(const AddressRange& place) const {
  if (const auto area = InjectionArea::find(pid_)) area->note_place(pid_, place);
}

bool MoveOut::unmap_left(std::span<const Vma> vmas) {
  const auto area = InjectionArea::find(pid_);
  const AddressRange left = area ? area->noted_place(pid_) : AddressRange{};
  const auto same = [&](const auto& r) { return r.begin == left.begin && r.end == left.end; };
  bool of_ours = false;
  for (uint64_t i = 0; i < kPlaces; ++i) of_ours |= same(place_at(i));
  if (!of_ours || std::none_of(vmas.begin(), vmas.end(), same)) return false;
  place_ = left.begin;
  unmap();
  return true;
}

void MoveOut::keep_resident(uint64_t begin, uint64_t end) {
  if (!stay_.empty() && stay_.back().end == begin)
    stay_.back().end = end;
  else
    stay_.push_back({begin, end});
}

}  // namespace medes
