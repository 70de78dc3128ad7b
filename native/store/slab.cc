#include "store/slab.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "common/checksum.h"
#include "common/thread_pool.h"
#include "store/seal.h"
#include "store/shm_file.h"
#include "store/slab_format.h"

namespace medes {

struct Slab::Impl {
  std::string path;
  ShmMapping mapping;
  SlabHeader header;
  AddressSpace space;
  Bytes meta;
  std::atomic<bool> unlinked{false};

  const uint64_t* table() const {
    return reinterpret_cast<const uint64_t*>(mapping.bytes().data() + kPageBytes);
  }
};

Slab::Slab() : impl_(std::make_unique<Impl>()) {}
Slab::~Slab() = default;

std::shared_ptr<Slab> Slab::create(const std::string& path, uint64_t base_id, const MemoryImage& image,
                                   std::span<const uint64_t> pages, Bytes meta) {
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
  header.pages_offset = slab_pages_offset(count);
  header.file_bytes = slab_end_of_pages(header) + round_up(meta.size(), kPageBytes);
  header.readable_from = kSlabVersion;
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
  if (!meta.empty()) {
    header.section_count = 1;
    header.sections[0] = {static_cast<uint32_t>(SlabSectionKind::meta), 0, slab_end_of_pages(header),
                          meta.size(), checksum64(meta)};
    std::memcpy(out + slab_end_of_pages(header), meta.data(), meta.size());
  }
  std::memcpy(out, &header, sizeof header);  // the rest of its page is zero
  seal(path, file.bytes().first(kPageBytes), file.bytes().subspan(kPageBytes));
  const uint64_t header_checksum = checksum64({out, kSlabChecksumOffset});
  std::memcpy(out + kSlabChecksumOffset, &header_checksum, sizeof header_checksum);
  file.commit(0400);
  return read(path, Owners::us);
}

std::shared_ptr<Slab> Slab::open(const std::string& path, Owners owners) {
  return read(path, owners, owners == Owners::us);
}

std::shared_ptr<Slab> Slab::read(const std::string& path, Owners owners, bool sealed) {
  ShmFd file(path, false, owners);
  if (file.size() < kPageBytes) throw Error(Code::corrupt, "slab: truncated header", path);
  const SlabHeader header = checked_slab_header(read_header<SlabHeaderPage>(file, path), file.size(), path);
  std::shared_ptr<Slab> slab(new Slab());
  Impl& impl = *slab->impl_;
  impl.path = path;
  impl.header = header;
  impl.mapping = ShmMapping(file.get(), 0, header.file_bytes, false, path);
  if (sealed)
    check_seal(path, impl.mapping.bytes().first(kPageBytes), impl.mapping.bytes().subspan(kPageBytes));
  impl.meta = checked_slab_sections(header, impl.mapping.bytes(), path);
  impl.space.ranges.assign(header.ranges, header.ranges + header.range_count);
  impl.space.value_only = header.value_only != 0;
  return slab;
}

uint64_t Slab::base_id() const { return impl_->header.base_id; }
uint64_t Slab::page_count() const { return impl_->header.page_count; }
const AddressSpace& Slab::space() const { return impl_->space; }
const std::string& Slab::path() const { return impl_->path; }
uint64_t Slab::file_bytes() const { return impl_->header.file_bytes; }
uint64_t Slab::pages_begin() const { return impl_->header.pages_offset; }
Bytes Slab::bytes() const {
  return impl_->mapping.bytes().subspan(impl_->header.pages_offset, page_count() * kPageBytes);
}
Bytes Slab::meta() const { return impl_->meta; }
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
  if (!unlink_in_folder(impl_->path) && errno != ENOENT)
    throw errno_error(errno, "cannot remove slab", impl_->path);
}

}  // namespace medes
