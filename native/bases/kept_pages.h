// Base pages of other nodes that this node keeps between restores, because working sets and tick sets are
// made of them. A copy of what a holder has: nothing is lost with it, and what is made of it is checked as
// what comes from the holder is.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "codec/base_view.h"
#include "common/limits.h"

namespace medes {

// The kept pages of one base: address space without memory until pages come. They only come, and go all at
// once with the object, so that readers need no lock.
class KeptBase {
 public:
  explicit KeptBase(uint64_t page_count);
  ~KeptBase();
  KeptBase(const KeptBase&) = delete;
  KeptBase& operator=(const KeptBase&) = delete;

  bool has(const Extent& extent) const;
  Bytes bytes() const { return {memory_, static_cast<size_t>(page_count_ * kPageBytes)}; }

 private:
  friend class KeptPages;
  bool has_page(uint64_t page) const {
    return present_[page / 64].load(std::memory_order_acquire) >> (page % 64) & 1;
  }
  const uint64_t page_count_;
  std::byte* memory_ = nullptr;
  std::vector<std::atomic<uint64_t>> present_;
  std::mutex adding_;
  uint64_t kept_bytes_ = 0, last_used_ = 0;  // guarded by KeptPages::mutex_
};

// A node's, by dedup domain and base: no domain reads what another one has brought. Thread-safe.
class KeptPages {
 public:
  struct Page {
    uint64_t page = 0;
    const std::byte* bytes = nullptr;
  };

  explicit KeptPages(uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  // What is kept of the base; null when nothing is.
  std::shared_ptr<const KeptBase> find(const std::string& domain, uint64_t base_id, uint64_t page_count);
  // Keeps copies of those of the pages that fit, at the cost of the bases that were not used for longest.
  void add(const std::string& domain, uint64_t base_id, uint64_t page_count, std::span<const Page> pages);
  // Whoever is reading one goes on until it is done.
  void drop(const std::string& domain, uint64_t base_id);
  void drop(uint64_t base_id);  // of all domains
  void clear();

  void count_used(uint64_t pages) { used_pages_ += pages; }
  uint64_t used_pages() const { return used_pages_; }  // pages of sandboxes that were made of what is kept
  uint64_t bytes() const;
  std::vector<uint64_t> base_ids() const;

 private:
  using Key = std::pair<std::string, uint64_t>;
  using Bases = std::map<Key, std::shared_ptr<KeptBase>>;
  Bases::iterator drop(Bases::iterator at);
  void make_room(uint64_t bytes, const KeptBase& but);

  const uint64_t limit_bytes_;
  mutable std::mutex mutex_;
  Bases bases_;
  uint64_t bytes_ = 0, uses_ = 0;
  std::atomic<uint64_t> used_pages_{0};
};

}  // namespace medes
