#include "registry/fingerprint_index.h"

#include <algorithm>
#include <mutex>

#include "common/error.h"
#include "common/thread_pool.h"

namespace medes {
namespace {

constexpr size_t kShardEntriesMin = 16;
constexpr size_t kLookupBlock = 64;       // hashes in flight, so that their cache misses overlap
constexpr size_t kLookupTask = 64 * 512;  // hashes one pool task looks up
constexpr size_t kBasesMax = 0xffff;

bool too_full(size_t used, size_t capacity) { return used * 10 >= capacity * 9; }

}  // namespace

void FingerprintIndex::Shard::add(uint32_t tag, uint64_t place) {
  if (too_full(used + 1, tags.size())) rebuild(std::max(kShardEntriesMin, tags.size() * 5 / 4 + 1), kNoSlot);
  size_t at = home(tag);
  size_t same = 0;
  while (places[at] != kNoLocation) {
    if (tags[at] == tag && ++same == kMaxLocations) return;
    if (++at == tags.size()) at = 0;
  }
  tags[at] = tag;
  places[at] = place;
  ++used;
}

void FingerprintIndex::Shard::rebuild(size_t capacity, uint32_t without_slot) {
  std::vector<uint32_t> old_tags(capacity);
  std::vector<uint64_t> old_places(capacity, kNoLocation);
  old_tags.swap(tags);
  old_places.swap(places);
  used = 0;
  for (size_t i = 0; i < old_places.size(); ++i) {
    if (old_places[i] == kNoLocation || unpack_location(old_places[i]).slot == without_slot) continue;
    size_t at = home(old_tags[i]);
    while (places[at] != kNoLocation) {
      if (++at == tags.size()) at = 0;
    }
    tags[at] = old_tags[i];
    places[at] = old_places[i];
    ++used;
  }
}

void FingerprintIndex::insert_one(uint64_t hash, uint64_t place) {
  shards_[shard_of(hash)].add(tag_of(hash), place);
}

void FingerprintIndex::insert(uint64_t base_id, std::span<const uint64_t> hashes,
                              std::span<const uint8_t> positions, uint32_t k) {
  if (k < 1 || k > kMaxSamples || hashes.size() % k != 0 || positions.size() != hashes.size()) {
    throw Error(Code::invalid_argument, "hashes and positions do not fit each other or k");
  }
  const uint64_t pages = hashes.size() / k;
  if (pages > kMaxBasePages) throw Error(Code::limit_exceeded, "base has too many pages");
  std::unique_lock lock(mutex_);
  if (slots_.contains(base_id))
    throw Error(Code::already_exists, "base is in the index", std::to_string(base_id));
  auto free_slot = std::find_if(bases_.begin(), bases_.end(), [](const Base& b) { return !b.live; });
  if (free_slot == bases_.end()) {
    if (bases_.size() >= kBasesMax) throw Error(Code::limit_exceeded, "index holds too many bases");
    free_slot = bases_.insert(bases_.end(), Base{});
  }
  *free_slot = {base_id, pages, true};
  const auto slot = static_cast<uint32_t>(free_slot - bases_.begin());
  slots_[base_id] = slot;
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (hashes[i] != 0) insert_one(hashes[i], pack_location(slot, i / k, positions[i]));
  }
}

bool FingerprintIndex::retire(uint64_t base_id) {
  std::unique_lock lock(mutex_);
  const auto it = slots_.find(base_id);
  if (it == slots_.end()) return false;
  const uint32_t slot = it->second;
  slots_.erase(it);
  bases_[slot] = {};
  for (Shard& shard : shards_) {
    const auto gone =
        static_cast<size_t>(std::count_if(shard.places.begin(), shard.places.end(), [&](uint64_t p) {
          return p != kNoLocation && unpack_location(p).slot == slot;
        }));
    if (gone != 0) shard.rebuild(std::max(kShardEntriesMin, (shard.used - gone) * 5 / 4 + 1), slot);
  }
  return true;
}

void FingerprintIndex::lookup_block(const uint64_t* hashes, size_t count, uint64_t* out) const {
  size_t homes[kLookupBlock];
  for (size_t i = 0; i < count; ++i) {
    const Shard& shard = shards_[shard_of(hashes[i])];
    if (hashes[i] == 0 || shard.tags.empty()) continue;
    homes[i] = shard.home(tag_of(hashes[i]));
    __builtin_prefetch(shard.tags.data() + homes[i]);
    __builtin_prefetch(shard.places.data() + homes[i]);
  }
  for (size_t i = 0; i < count; ++i, out += kMaxLocations) {
    const Shard& shard = shards_[shard_of(hashes[i])];
    if (hashes[i] == 0 || shard.tags.empty()) continue;
    const uint32_t tag = tag_of(hashes[i]);
    size_t found = 0;
    for (size_t at = homes[i]; shard.places[at] != kNoLocation;) {
      if (shard.tags[at] == tag) {
        out[found] = shard.places[at];
        if (++found == kMaxLocations) break;
      }
      if (++at == shard.tags.size()) at = 0;
    }
  }
}

void FingerprintIndex::View::find(std::span<const uint64_t> hashes, uint64_t* out) const {
  for (size_t i = 0; i < hashes.size(); i += kLookupBlock) {
    const size_t n = std::min(kLookupBlock, hashes.size() - i);
    index_.lookup_block(hashes.data() + i, n, out + i * kMaxLocations);
  }
}

void FingerprintIndex::View::name_bases(Locations& found) const {
  std::vector<uint32_t> slots(index_.bases_.size(), kNoSlot);
  for (uint64_t& place : found.packed()) {
    if (place == kNoLocation) continue;
    const Location l = unpack_location(place);
    if (slots[l.slot] == kNoSlot) slots[l.slot] = found.add_base(index_.bases_[l.slot].id);
    place = pack_location(slots[l.slot], l.page, l.position);
  }
}

Locations FingerprintIndex::lookup(std::span<const uint64_t> hashes, uint32_t k) const {
  if (k < 1 || k > kMaxSamples || hashes.size() % k != 0) {
    throw Error(Code::invalid_argument, "hashes do not fit k");
  }
  Locations out(hashes.size() / k, k);
  const View view(*this);
  uint64_t* const packed = out.packed().data();
  ThreadPool::shared().parallel_for(hashes.size(), kLookupTask, [&](size_t begin, size_t end) {
    view.find(hashes.subspan(begin, end - begin), packed + begin * kMaxLocations);
  });
  view.name_bases(out);
  return out;
}

std::vector<uint64_t> FingerprintIndex::base_ids() const {
  std::shared_lock lock(mutex_);
  std::vector<uint64_t> ids;
  for (const Base& b : bases_) {
    if (b.live) ids.push_back(b.id);
  }
  return ids;
}

IndexStats FingerprintIndex::stats() const {
  std::shared_lock lock(mutex_);
  IndexStats s;
  for (const Base& b : bases_) {
    s.bases += b.live;
    s.base_pages += b.pages;
  }
  s.bytes = sizeof(*this) + bases_.capacity() * sizeof(Base) + slots_.size() * 48;
  for (const Shard& shard : shards_) {
    s.hashes += shard.used;
    s.bytes += shard.tags.capacity() * sizeof(uint32_t) + shard.places.capacity() * sizeof(uint64_t);
  }
  return s;
}

}  // namespace medes
