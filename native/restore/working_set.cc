#include "restore/working_set.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "common/checksum.h"
#include "common/error.h"

namespace medes {
namespace {

uint64_t hash(const std::string& text) { return checksum64(std::as_bytes(std::span(text))); }

// What a mapping is called when its address is left out: the path of what it maps, for other memory its size
// class; the constructor adds the rank of appearance.
std::string name_of(const Vma& v, uint32_t process) {
  const std::string name = std::to_string(process) + "/" + std::to_string(static_cast<int>(v.kind)) + "/";
  if (!v.path.empty()) return name + v.path;
  return name + "2^" + std::to_string(std::bit_width(v.end - v.begin));
}

// All of a program or library from its first byte on is one region, whatever it is cut into: its data may be
// a file's mapping in one instance and anonymous in the next, and anonymous memory right behind it is its
// .bss.
bool continues(const Vma& library, uint64_t end, const Vma& v) {
  if (v.begin != end || v.shared) return false;
  if (v.kind == VmaKind::file_private) return v.path == library.path && v.offset != 0;
  return v.kind == VmaKind::anonymous && v.path.empty() && v.prot != 0;
}

}  // namespace

RegionIndex::RegionIndex(const ImageLayout& layout) : layout_(layout) {
  for (uint32_t p = 0; p < layout.processes.size(); ++p) {
    std::unordered_map<std::string, uint32_t> seen;
    std::vector<Region> regions;
    const Vma* library = nullptr;  // that the last region is of
    for (const auto& v : layout.processes[p].vmas) {
      if (library != nullptr && continues(*library, regions.back().end, v)) {
        regions.back().end = v.end;
        by_key_[regions.back().key].end = v.end;
        continue;
      }
      library = nullptr;
      if (v.shared) continue;
      const std::string name = name_of(v, p);
      const uint64_t key = hash(name + "#" + std::to_string(seen[name]++));
      regions.push_back({v.begin, v.end, key});
      by_key_.try_emplace(key, Place{p, v.begin, v.end});
      if (v.kind == VmaKind::file_private) library = &v;
    }
    regions_.push_back(std::move(regions));
  }
}

WorkingSetEntry RegionIndex::entry_of(uint64_t page) const {
  const PageRun& run = layout_.run_of(page);
  const uint64_t address = run.address + (page - run.first_page) * kPageBytes;
  const auto& regions = regions_[run.process];
  auto next = std::upper_bound(regions.begin(), regions.end(), address,
                               [](uint64_t a, const Region& r) { return a < r.begin; });
  if (next == regions.begin()) return {};
  const Region& r = *std::prev(next);
  return {r.key, (address - r.begin) / kPageBytes};
}

std::vector<uint64_t> RegionIndex::pages_of(std::span<const WorkingSetEntry> entries) const {
  std::vector<uint64_t> out;
  std::vector<bool> seen(layout_.page_count);
  auto place = by_key_.end();
  for (const auto& e : entries) {
    if (place == by_key_.end() || place->first != e.region_key) place = by_key_.find(e.region_key);
    if (place == by_key_.end()) continue;
    const Place& r = place->second;
    if (e.page_offset >= (r.end - r.begin) / kPageBytes) continue;
    const uint64_t page = layout_.find(r.process, r.begin + e.page_offset * kPageBytes);
    if (page == ImageLayout::kNoPage || seen[page]) continue;
    seen[page] = true;
    out.push_back(page);
  }
  return out;
}

std::vector<WorkingSetEntry> unpack_working_set(Bytes packed) {
  if (packed.size() % sizeof(WorkingSetEntry) != 0)
    throw Error(Code::invalid_argument, "a packed working set has 16 bytes an entry");
  if (packed.size() / sizeof(WorkingSetEntry) > kMaxWorkingSetPages)
    throw Error(Code::limit_exceeded, "the working set has too many pages");
  std::vector<WorkingSetEntry> out(packed.size() / sizeof(WorkingSetEntry));
  if (!packed.empty()) std::memcpy(out.data(), packed.data(), packed.size());
  return out;
}

}  // namespace medes
