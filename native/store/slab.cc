#include "store/slab.h"

#include <unistd.h>

#include <algorithm>
#include <array>
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

namespace {

uint64_t pages_offset(uint64_t page_count) {
  return kPageBytes + round_up(page_count * sizeof(uint64_t), kPageBytes);
}

using HeaderPage = std::array<std::byte, kPageBytes>;

uint64_t checksum_at(const HeaderPage& page, size_t offset) {
  uint64_t value = 0;
  std::memcpy(&value, page.data() + offset, sizeof value);
  return value;
}

// Where the header of a file says that its sections lie, each must lie there.
uint64_t end_of_pages(const SlabHeader& h) { return h.pages_offset + h.page_count * kPageBytes; }

// Everything that must hold of a header before any length in it is used. What follows the fields that version
// 1 had is zero in one of that version.
SlabHeader checked_header(const HeaderPage& page, uint64_t file_bytes, const std::string& path) {
  auto require = [&](bool ok, const char* what) {
    if (!ok) throw Error(Code::corrupt, std::string("slab: ") + what, path);
  };
  SlabHeader h{};
  std::memcpy(&h, page.data(), sizeof h);
  require(h.magic == kSlabMagic, "wrong magic");
  const bool first = h.version == 1;
  const size_t checked = first ? kSlabV1HeaderBytes : kSlabChecksumOffset;
  require(checksum_at(page, checked) == checksum64(Bytes(page).first(checked)), "header checksum");
  if (first) std::memset(&h.readable_from, 0, sizeof h - kSlabV1HeaderBytes);
  if (h.version == 0 || h.readable_from > kSlabVersion)
    throw Error(Code::unsupported, "slab: version " + std::to_string(h.version) + " needs a newer Medes",
                path);
  require(h.header_bytes == kPageBytes, "header length");
  require(h.page_count >= 1 && h.page_count <= kMaxBasePages, "page count");
  require(h.pages_offset == pages_offset(h.page_count), "pages offset");
  require(h.file_bytes == file_bytes && h.file_bytes >= end_of_pages(h), "file length");
  require(h.version != 1 || h.file_bytes == end_of_pages(h), "file length");
  require(h.range_count <= kMaxRanges && h.value_only <= 1, "address ranges");
  for (uint32_t i = 0; i < h.range_count; ++i) {
    require(h.ranges[i].begin < h.ranges[i].end, "empty address range");
    require(i == 0 || h.ranges[i - 1].end <= h.ranges[i].begin, "address ranges out of order");
  }
  require(h.section_count <= kSlabSections, "section count");
  for (uint32_t i = 0; i < h.section_count; ++i) {
    const SlabSection& section = h.sections[i];
    require(section.offset >= end_of_pages(h) && section.offset <= file_bytes &&
                section.bytes <= file_bytes - section.offset,
            "section outside the file");
    if (section.required && section.kind != static_cast<uint32_t>(SlabSectionKind::meta))
      throw Error(Code::unsupported, "slab: a section that this version does not know must be read", path);
  }
  return h;
}

}  // namespace

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
  header.pages_offset = pages_offset(count);
  header.file_bytes = end_of_pages(header) + round_up(meta.size(), kPageBytes);
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
    header.sections[0] = {static_cast<uint32_t>(SlabSectionKind::meta), 0, end_of_pages(header), meta.size(),
                          checksum64(meta)};
    std::memcpy(out + end_of_pages(header), meta.data(), meta.size());
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
  const SlabHeader header = checked_header(read_header<HeaderPage>(file, path), file.size(), path);
  std::shared_ptr<Slab> slab(new Slab());
  Impl& impl = *slab->impl_;
  impl.path = path;
  impl.header = header;
  impl.mapping = ShmMapping(file.get(), 0, header.file_bytes, false, path);
  if (sealed)
    check_seal(path, impl.mapping.bytes().first(kPageBytes), impl.mapping.bytes().subspan(kPageBytes));
  if (checksum64(impl.mapping.bytes().subspan(kPageBytes, header.page_count * sizeof(uint64_t))) !=
      header.table_checksum)
    throw Error(Code::corrupt, "slab: checksum of the page checksums", path);
  for (uint32_t i = 0; i < header.section_count; ++i) {
    const SlabSection& section = header.sections[i];
    if (section.kind != static_cast<uint32_t>(SlabSectionKind::meta)) continue;  // of a newer version
    impl.meta = impl.mapping.bytes().subspan(section.offset, section.bytes);
    if (checksum64(impl.meta) != section.checksum)
      throw Error(Code::corrupt, "slab: checksum of the meta section", path);
  }
  impl.space.ranges.assign(header.ranges, header.ranges + header.range_count);
  impl.space.value_only = header.value_only != 0;
  return slab;
}

uint64_t Slab::base_id() const { return impl_->header.base_id; }
uint64_t Slab::page_count() const { return impl_->header.page_count; }
const AddressSpace& Slab::space() const { return impl_->space; }
const std::string& Slab::path() const { return impl_->path; }
uint64_t Slab::file_bytes() const { return impl_->header.file_bytes; }
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
