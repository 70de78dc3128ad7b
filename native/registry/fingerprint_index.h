// In-memory index chunk hash → base page and position: the controller's registry and the agents' own. A hint,
// not the truth: 32 bits of each hash are kept, so about one answer in 10^8 names a window that does not fit.
//
// Cost: 12 bytes an entry at 70 to 90 % fill, at most two entries a hash: below 150 bytes a base page at k
// = 8.
#pragma once

#include <array>
#include <cstdint>
#include <shared_mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "registry/locations.h"

namespace medes {

struct IndexStats {
  uint64_t bases = 0, base_pages = 0, hashes = 0, bytes = 0;
};

// Thread-safe: lookups run side by side, insert and retire alone.
class FingerprintIndex {
 public:
  // hashes: page_count * k, 0 = none; positions in units of 16 bytes. Throws already_exists,
  // invalid_argument, limit_exceeded (65535 bases).
  void insert(uint64_t base_id, std::span<const uint64_t> hashes, std::span<const uint8_t> positions,
              uint32_t k);
  bool retire(uint64_t base_id);  // false when it was not there
  Locations lookup(std::span<const uint64_t> hashes, uint32_t k) const;

  // The index standing still while an image is looked up in parts, from several threads. Short-lived: bases
  // that are to join or leave wait for it.
  class View {
   public:
    explicit View(const FingerprintIndex& index) : index_(index), lock_(index.mutex_) {}
    // Puts up to kMaxLocations places a hash into `out`, whose other places are kNoLocation already. They
    // name slots of the index until name_bases().
    void find(std::span<const uint64_t> hashes, uint64_t* out) const;
    // Makes the index's slots slots of `found`, in order of first use.
    void name_bases(Locations& found) const;

   private:
    const FingerprintIndex& index_;
    std::shared_lock<std::shared_mutex> lock_;
  };
  std::vector<uint64_t> base_ids() const;
  IndexStats stats() const;

 private:
  // Open addressing, linear probing, any capacity (a hash maps to tag * capacity >> 32). Shards keep the copy
  // that growing makes small.
  struct Shard {
    std::vector<uint32_t> tags;
    std::vector<uint64_t> places;  // pack_location, kNoLocation = empty
    size_t used = 0;

    size_t home(uint32_t tag) const { return static_cast<size_t>((uint64_t{tag} * tags.size()) >> 32); }
    void add(uint32_t tag, uint64_t place);
    void rebuild(size_t capacity, uint32_t without_slot);
  };
  struct Base {
    uint64_t id = 0;
    uint64_t pages = 0;
    bool live = false;
  };
  static constexpr size_t kShards = 64;
  static constexpr uint32_t kNoSlot = ~0u;

  static size_t shard_of(uint64_t hash) { return hash & (kShards - 1); }
  static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }
  void insert_one(uint64_t hash, uint64_t place);
  void lookup_block(const uint64_t* hashes, size_t count, uint64_t* out) const;

  mutable std::shared_mutex mutex_;
  std::array<Shard, kShards> shards_;
  std::vector<Base> bases_;  // by slot; slots of retired bases are used again
  std::unordered_map<uint64_t, uint32_t> slots_;
};

}  // namespace medes
