#include "store/slab.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "common/checksum.h"
#include "common/thread_pool.h"
#include "store/shm_file.h"
#include "store/slab_format.h"

namespace medes {

namespace {

uint64_t pages_offset(uint64_t page_count) {
  return kPageBytes + round_up(page_count * sizeof(uint64_t), kPageBytes);
}

Bytes header_prefix(const SlabHeader& header) {
  return {reinterpret_cast<const std::byte*>(&header), offsetof(SlabHeader, header_checksum)};
}

// Everything that must hold of a header before any length in it is used.
void check_header(const SlabHeader& h, uint64_t file_bytes, const std::string& path) {
  auto require = [&](bool ok, const char* what) {
    if (!ok) throw Error(Code::corrupt, std::string("slab: ") + what, path);
  };
  require(h.magic == kSlabMagic, "wrong magic");
  require(h.version == kSlabVersion, "unknown version");
  require(h.header_checksum == checksum64(header_prefix(h)), "header checksum");
  require(h.header_bytes == kPageBytes, "header length");
  require(h.page_count >= 1 && h.page_count <= kMaxBasePages, "page count");
  require(h.pages_offset == pages_offset(h.page_count), "pages offset");
  require(h.file_bytes == h.pages_offset + h.page_count * kPageBytes, "file length in header");
  require(h.file_bytes == file_bytes, "file length");
  require(h.range_count <= kMaxRanges && h.value_only <= 1, "address ranges");
  for (uint32_t i = 0; i < h.range_count; ++i) {
    require(h.ranges[i].begin < h.ranges[i].end, "empty address range");
    require(i == 0 || h.ranges[i - 1].end <= h.ranges[i].begin, "address ranges out of order");
  }
}

}  // namespace

struct Slab::Impl {
  std::string path;
  ShmMapping mapping;
  SlabHeader header;
  AddressSpace space;
  std::atomic<bool> unlinked{false};

  const uint64_t* table() const {
    return reinterpret_cast<const uint64_t*>(mapping.bytes().data() + kPageBytes);
  }
};

Slab::Slab() : impl_(std::make_unique<Impl>()) {}
Slab::~Slab() = default;

std::shared_ptr<Slab> Slab::create(const std::string& path, uint64_t base_id, const MemoryImage& image,
                                   std::span<const uint64_t> pages) {
  const uint64_t count = pages.empty() ? image.page_count() : pages.size();
  const AddressSpace& space = image.layout().space;
  if (count == 0 || count > kMaxBasePages) throw Error(Code::limit_exceeded, "base page count", path);
  if (space.ranges.size() > kMaxRanges) throw Error(Code::limit_exceeded, "base address ranges", path);
  for (uint64_t page : pages)
    if (page >= image.page_count()) throw Error(Code::invalid_argument, "page outside the image", path);

  SlabHeader header{};
  header.magic = kSlabMagic;
  header.version = kSlabVersion;
  header.header_bytes = kPageBytes;
  header.base_id = base_id;
  header.page_count = count;
  header.pages_offset = pages_offset(count);
  header.file_bytes = header.pages_offset + count * kPageBytes;
  header.range_count = static_cast<uint32_t>(space.ranges.size());
  header.value_only = space.value_only;
  std::copy(space.ranges.begin(), space.ranges.end(), header.ranges);

  ShmFileWriter file(path, header.file_bytes);
  std::byte* out = file.bytes().data();
  auto* table = reinterpret_cast<uint64_t*>(out + kPageBytes);
  std::vector<uint64_t> all;
  if (pages.empty()) {
    all.resize(count);
    std::iota(all.begin(), all.end(), 0);
    pages = all;
  }
  ThreadPool::shared().parallel_for(count, MemoryImage::kReadPages, [&](size_t begin, size_t end) {
    std::byte* const copies = out + header.pages_offset;
    image.gather(pages.subspan(begin, end - begin), copies + begin * kPageBytes);
    for (size_t i = begin; i < end; ++i) table[i] = checksum64({copies + i * kPageBytes, kPageBytes});
  });
  header.table_checksum = checksum64({out + kPageBytes, count * sizeof(uint64_t)});
  header.header_checksum = checksum64(header_prefix(header));
  std::memcpy(out, &header, sizeof header);
  file.commit(0400);
  return open(path);
}

std::shared_ptr<Slab> Slab::open(const std::string& path) {
  ShmFd file(path, false);
  if (file.size() < kPageBytes) throw Error(Code::corrupt, "slab: truncated header", path);
  const auto header = read_header<SlabHeader>(file, path);
  check_header(header, file.size(), path);
  std::shared_ptr<Slab> slab(new Slab());
  Impl& impl = *slab->impl_;
  impl.path = path;
  impl.header = header;
  impl.mapping = ShmMapping(file.get(), 0, header.file_bytes, false, path);
  if (checksum64(impl.mapping.bytes().subspan(kPageBytes, header.page_count * sizeof(uint64_t))) !=
      header.table_checksum)
    throw Error(Code::corrupt, "slab: checksum of the page checksums", path);
  impl.space.ranges.assign(header.ranges, header.ranges + header.range_count);
  impl.space.value_only = header.value_only != 0;
  return slab;
}

uint64_t Slab::base_id() const { return impl_->header.base_id; }
uint64_t Slab::page_count() const { return impl_->header.page_count; }
const AddressSpace& Slab::space() const { return impl_->space; }
const std::string& Slab::path() const { return impl_->path; }
uint64_t Slab::file_bytes() const { return impl_->header.file_bytes; }
Bytes Slab::bytes() const { return impl_->mapping.bytes().subspan(impl_->header.pages_offset); }
BaseView Slab::view() const { return {base_id(), bytes(), impl_->space}; }

std::span<const uint64_t> Slab::page_checksums() const { return {impl_->table(), page_count()}; }

bool Slab::verify(uint64_t first, uint64_t count) const {
  if (first > page_count() || count > page_count() - first)
    throw Error(Code::invalid_argument, "pages outside the slab", path());
  for (uint64_t i = first; i < first + count; ++i)
    if (checksum64(bytes().subspan(i * kPageBytes, kPageBytes)) != impl_->table()[i]) return false;
  return true;
}

void Slab::unlink() {
  if (impl_->unlinked.exchange(true)) return;
  if (::unlink(impl_->path.c_str()) && errno != ENOENT)
    throw errno_error(errno, "cannot remove slab", impl_->path);
}

}  // namespace medes
