// fetch → decode → verify → place for lists of image pages. One object per restore, shared by its threads.
#pragma once

#include <atomic>
#include <bitset>
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "bases/base_set.h"
#include "codec/encoded_image.h"
#include "common/error.h"
#include "common/wiped.h"
#include "image/image.h"
#include "restore/placer.h"

namespace medes {

// Who may rebuild which page now (another thread may be at it, or it may not be wanted any more).
class PageClaims {
 public:
  virtual ~PageClaims() = default;
  virtual bool claim(uint64_t page) = 0;
  virtual void unclaim(uint64_t page) = 0;
};

class Rebuilder {
 public:
  static constexpr size_t kBlockPages = 64;  // placed in runs of at most 256 KiB

  // A thread's own buffers.
  class Worker {
   public:
    Worker();
    ~Worker();
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;
    void wipe() noexcept;  // before it is another sandbox's

   private:
    friend class Rebuilder;
    WipedBytes bytes_;
    size_t used_ = 0;  // of bytes_
    std::unique_ptr<EncodedImage::Scratch, void (*)(EncodedImage::Scratch*)> scratch_;
  };

  // All three outlive this object. Throws not_found when `bases` lacks a base of the image.
  Rebuilder(const ImageLayout& layout, const EncodedImage& encoded, BaseSet& bases);

  // Of pages that working sets are made of: the node keeps what is fetched for them.
  enum class For : uint8_t { once, working_set };

  bool all_local() const { return all_local_; }

  // Makes the base pages behind `pages` present, all in one batch; blocks on the network.
  Code fetch(Worker& worker, std::span<const uint64_t> pages, For what, std::chrono::nanoseconds timeout);
  // The same for many, in their order: some batches are in flight at any time, and what has come may be
  // rebuilt by others meanwhile. Ends early when `stop` says so, and with the first failure.
  Code fetch_in_order(Worker& worker, std::span<const uint64_t> pages, For what,
                      const std::function<bool()>& stop);

  // Rebuilds the claimable ones of at most kBlockPages ascending pages and places them in as few runs as
  // possible. ok, or why it stopped: corrupt (a checksum), the transport's failure, the placer's.
  Code rebuild(Worker& worker, std::span<const uint64_t> pages, For what, PageClaims& claims, Placer& placer,
               uint64_t& placed);

  uint64_t fetch_us() const { return fetch_ns_.load() / 1000; }
  uint64_t apply_us() const { return apply_ns_.load() / 1000; }
  uint64_t place_us() const { return place_ns_.load() / 1000; }

 private:
  struct Kept;
  Kept kept() const;
  Code absent(Worker& worker, std::span<const uint64_t> pages, const Kept& kept, std::vector<Extent>& out,
              std::bitset<kBlockPages>* from_kept) const;
  Code decode(Worker& worker, std::span<const uint64_t> pages, For what);
  Code place_runs(Worker& worker, std::span<const uint64_t> pages, Placer& placer);
  const ImageLayout& layout_;
  const EncodedImage& encoded_;
  BaseSet& bases_;
  std::vector<BaseView> views_;
  std::vector<uint32_t> slots_;  // of the image → of `bases`
  bool all_local_ = true;
  std::atomic<uint64_t> fetch_ns_{0}, apply_ns_{0}, place_ns_{0};
};

inline constexpr std::chrono::seconds kFetchTimeout{10};

}  // namespace medes
