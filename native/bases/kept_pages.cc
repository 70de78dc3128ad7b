#include "bases/kept_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/error.h"

namespace medes {

KeptBase::KeptBase(uint64_t page_count) : page_count_(page_count), present_((page_count + 63) / 64) {
  void* mapped = mmap(nullptr, page_count * kPageBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw errno_error(errno, "cannot reserve address space for kept pages");
  memory_ = static_cast<std::byte*>(mapped);
}

KeptBase::~KeptBase() { munmap(memory_, page_count_ * kPageBytes); }

bool KeptBase::has(const Extent& extent) const {
  const uint64_t size = page_count_ * kPageBytes;
  if (extent.length == 0 || extent.offset > size || extent.length > size - extent.offset) return false;
  const uint64_t last = (extent.offset + extent.length - 1) / kPageBytes;
  for (uint64_t page = extent.offset / kPageBytes; page <= last; ++page)
    if (!has_page(page)) return false;
  return true;
}

std::shared_ptr<const KeptBase> KeptPages::find(const std::string& domain, uint64_t base_id,
                                                uint64_t page_count) {
  const std::lock_guard lock(mutex_);
  const auto found = bases_.find({domain, base_id});
  if (found == bases_.end() || found->second->page_count_ != page_count) return nullptr;
  found->second->last_used_ = ++uses_;
  return found->second;
}

void KeptPages::add(const std::string& domain, uint64_t base_id, uint64_t page_count,
                    std::span<const Page> pages) {
  if (pages.empty() || page_count == 0 || page_count > kMaxBasePages || limit_bytes_ < kPageBytes) return;
  std::shared_ptr<KeptBase> base;
  {
    const std::lock_guard lock(mutex_);
    auto& known = bases_[{domain, base_id}];
    try {
      if (!known) known = std::make_shared<KeptBase>(page_count);
    } catch (...) {
      bases_.erase({domain, base_id});
      throw;
    }
    if (known->page_count_ != page_count) return;
    base = known;
    base->last_used_ = ++uses_;
  }
  const std::lock_guard adding(base->adding_);
  const auto is_new = [&](const Page& p) { return p.page < page_count && !base->has_page(p.page); };
  uint64_t room = static_cast<uint64_t>(std::count_if(pages.begin(), pages.end(), is_new)) * kPageBytes;
  {
    const std::lock_guard lock(mutex_);
    const auto known = bases_.find({domain, base_id});
    if (known == bases_.end() || known->second != base) return;  // dropped meanwhile
    make_room(room, *base);
    room = std::min(room, (limit_bytes_ - bytes_) / kPageBytes * kPageBytes);
    base->kept_bytes_ += room;
    bytes_ += room;
  }
  // Copied without the lock on all: a fault may want to look.
  for (const Page& p : pages) {
    if (room == 0) break;
    if (!is_new(p)) continue;
    std::memcpy(base->memory_ + p.page * kPageBytes, p.bytes, kPageBytes);
    base->present_[p.page / 64].fetch_or(1ull << (p.page % 64), std::memory_order_release);
    room -= kPageBytes;
  }
}

// The caller holds mutex_, as of all below.
void KeptPages::make_room(uint64_t bytes, const KeptBase& but) {
  while (bytes_ + bytes > limit_bytes_) {
    auto oldest = bases_.end();
    for (auto at = bases_.begin(); at != bases_.end(); ++at)
      if (at->second.get() != &but &&
          (oldest == bases_.end() || at->second->last_used_ < oldest->second->last_used_))
        oldest = at;
    if (oldest == bases_.end()) return;
    drop(oldest);
  }
}

KeptPages::Bases::iterator KeptPages::drop(Bases::iterator at) {
  bytes_ -= at->second->kept_bytes_;
  return bases_.erase(at);
}

void KeptPages::drop(const std::string& domain, uint64_t base_id) {
  const std::lock_guard lock(mutex_);
  if (const auto found = bases_.find({domain, base_id}); found != bases_.end()) drop(found);
}

void KeptPages::drop(uint64_t base_id) {
  const std::lock_guard lock(mutex_);
  for (auto at = bases_.begin(); at != bases_.end();) at = at->first.second == base_id ? drop(at) : ++at;
}

void KeptPages::clear() {
  const std::lock_guard lock(mutex_);
  for (auto at = bases_.begin(); at != bases_.end();) at = drop(at);
}

uint64_t KeptPages::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

std::vector<uint64_t> KeptPages::base_ids() const {
  std::vector<uint64_t> out;
  const std::lock_guard lock(mutex_);
  for (const auto& [key, base] : bases_) out.push_back(key.second);
  return out;
}

}  // namespace medes
