#include "image/image.h"

#include <sys/mman.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "common/checksum.h"
#include "common/error.h"
#include "common/thread_pool.h"
#include "common/wiped.h"
#include "image/process_reader.h"

namespace medes {
namespace {

constexpr size_t kCopyPages = 2048;  // 8 MiB: some milliseconds of work

// Serialised layout: this header, then ranges, processes (each with its VMAs), runs; the checksum covers
// everything after itself. Field order and sizes are drawn in docs/live-driver.md.
struct LayoutHeader {
  uint32_t magic;
  uint32_t version;
  uint64_t checksum;
  uint64_t page_count;
  uint32_t ranges;
  uint32_t processes;
  uint64_t runs;
  uint32_t value_only;
  uint32_t reserved;
};
static_assert(sizeof(LayoutHeader) == 48);

struct WireProcess {
  int32_t pid;
  uint32_t vmas;
  uint64_t start_time_ticks;
};
static_assert(sizeof(WireProcess) == 16);

struct WireVma {
  uint64_t begin, end, offset, inode;
  uint32_t device, prot;
  uint8_t shared, kind;
  uint16_t path_bytes;
  uint32_t reserved;
};
static_assert(sizeof(WireVma) == 48);

struct WireRun {
  uint64_t address, count;
  uint32_t process, reserved;
};
static_assert(sizeof(WireRun) == 24);

constexpr uint32_t kLayoutMagic = 0x544c444d;  // "MDLT"
constexpr uint32_t kLayoutVersion = 1;
constexpr size_t kChecksumEnd = offsetof(LayoutHeader, checksum) + sizeof(uint64_t);
constexpr size_t kMaxPathBytes = 4096;
constexpr uint64_t kMaxAddress = 1ull << 57;  // five-level page tables

Error corrupt(const char* what) { return Error(Code::corrupt, what, "image layout"); }

void check_space(const AddressSpace& space) {
  uint64_t last = 0;
  for (const auto& r : space.ranges) {
    if (r.begin >= r.end || r.begin < last) throw corrupt("address ranges are not ascending");
    last = r.end;
  }
}

ProcessLayout parse_process(ByteReader& in) {
  const auto wire = in.get<WireProcess>();
  if (wire.vmas > kMaxVmas || wire.vmas > in.remaining() / sizeof(WireVma)) throw corrupt("too many VMAs");
  ProcessLayout p;
  p.pid = wire.pid;
  p.start_time_ticks = wire.start_time_ticks;
  p.vmas.reserve(wire.vmas);
  for (uint32_t i = 0; i < wire.vmas; ++i) {
    const auto w = in.get<WireVma>();
    if (w.begin >= w.end || w.kind > static_cast<uint8_t>(VmaKind::other) || w.path_bytes > kMaxPathBytes)
      throw corrupt("bad VMA");
    if (!p.vmas.empty() && w.begin < p.vmas.back().end) throw corrupt("VMAs are not ascending");
    const Bytes path = in.take(w.path_bytes);
    Vma v;
    v.begin = w.begin, v.end = w.end, v.offset = w.offset, v.inode = w.inode;
    v.device = w.device, v.prot = w.prot, v.shared = w.shared != 0, v.kind = static_cast<VmaKind>(w.kind);
    v.path.assign(reinterpret_cast<const char*>(path.data()), path.size());
    p.vmas.push_back(std::move(v));
  }
  return p;
}

}  // namespace

std::vector<std::byte> ImageLayout::serialise() const {
  ByteWriter out;
  LayoutHeader header{kLayoutMagic,
                      kLayoutVersion,
                      0,
                      page_count,
                      static_cast<uint32_t>(space.ranges.size()),
                      static_cast<uint32_t>(processes.size()),
                      runs.size(),
                      space.value_only ? 1u : 0u,
                      0};
  out.put(header);
  for (const auto& r : space.ranges) out.put(r);
  for (const auto& p : processes) {
    out.put(WireProcess{p.pid, static_cast<uint32_t>(p.vmas.size()), p.start_time_ticks});
    for (const auto& v : p.vmas) {
      const size_t path_bytes = std::min(v.path.size(), kMaxPathBytes);
      out.put(WireVma{v.begin, v.end, v.offset, v.inode, v.device, v.prot, static_cast<uint8_t>(v.shared),
                      static_cast<uint8_t>(v.kind), static_cast<uint16_t>(path_bytes), 0});
      out.put_bytes(std::as_bytes(std::span(v.path.data(), path_bytes)));
    }
  }
  for (const auto& r : runs) out.put(WireRun{r.address, r.count, r.process, 0});
  auto bytes = std::move(out.buffer());
  header.checksum = checksum64(Bytes(bytes).subspan(kChecksumEnd));
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

ImageLayout ImageLayout::parse(Bytes data) {
  ByteReader in(data, "image layout");
  const auto header = in.get<LayoutHeader>();
  if (header.magic != kLayoutMagic) throw corrupt("not an image layout");
  if (header.version != kLayoutVersion)
    throw Error(Code::unsupported,
                "image layout: version " + std::to_string(header.version) + " is not known here");
  if (checksum64(data.subspan(kChecksumEnd)) != header.checksum) throw corrupt("checksum mismatch");
  if (header.ranges > kMaxRanges || header.processes > kMaxProcesses || header.page_count > kMaxImagePages)
    throw corrupt("a length is out of bounds");
  ImageLayout layout;
  layout.space.value_only = header.value_only != 0;
  for (uint32_t i = 0; i < header.ranges; ++i) layout.space.ranges.push_back(in.get<AddressRange>());
  check_space(layout.space);
  for (uint32_t i = 0; i < header.processes; ++i) layout.processes.push_back(parse_process(in));
  if (header.runs > in.remaining() / sizeof(WireRun)) throw corrupt("too many runs");
  layout.runs.reserve(header.runs);
  for (uint64_t i = 0; i < header.runs; ++i) {
    const auto w = in.get<WireRun>();
    const bool first_of_process = layout.runs.empty() || layout.runs.back().process < w.process;
    if (w.process >= header.processes || w.address % kPageBytes != 0 || w.count == 0 ||
        w.count > header.page_count - layout.page_count || w.address >= kMaxAddress)
      throw corrupt("bad page run");
    if (!first_of_process) {
      const PageRun& last = layout.runs.back();
      if (w.process != last.process || w.address < last.address + last.count * kPageBytes)
        throw corrupt("page runs are not ascending");
    }
    layout.runs.push_back({w.process, w.address, layout.page_count, w.count});
    layout.page_count += w.count;
  }
  if (layout.page_count != header.page_count || in.remaining() != 0) throw corrupt("lengths do not add up");
  return layout;
}

const PageRun& ImageLayout::run_of(uint64_t page) const {
  if (page >= page_count) throw Error(Code::invalid_argument, "page index out of range", "image layout");
  auto next = std::upper_bound(runs.begin(), runs.end(), page,
                               [](uint64_t p, const PageRun& r) { return p < r.first_page; });
  return *std::prev(next);
}

uint64_t ImageLayout::find(uint32_t process, uint64_t address) const {
  auto next = std::upper_bound(
      runs.begin(), runs.end(), std::pair(process, address), [](const auto& key, const PageRun& r) {
        return key.first != r.process ? key.first < r.process : key.second < r.address;
      });
  if (next == runs.begin()) return kNoPage;
  const PageRun& r = *std::prev(next);
  if (r.process != process || address >= r.address + r.count * kPageBytes) return kNoPage;
  return r.first_page + (address - r.address) / kPageBytes;
}

bool ImageLayout::adjacent(uint64_t page) const {
  if (page + 1 >= page_count) return false;
  const PageRun& r = run_of(page);
  if (page + 1 < r.first_page + r.count) return true;
  const PageRun& next = *(&r + 1);  // page + 1 exists, so a further run does
  return next.process == r.process && next.address == r.address + r.count * kPageBytes;
}

MemoryImage::MemoryImage(ImageLayout layout, size_t page_count) : layout_(std::move(layout)) {
  if (page_count > kMaxImagePages) throw Error(Code::limit_exceeded, "image has too many pages");
  layout_.page_count = page_count;
  mapped_bytes_ = std::max<size_t>(page_count, 1) * kPageBytes;
  void* p = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
  if (p == MAP_FAILED) throw errno_error(errno, "cannot map memory for an image");
  pages_ = static_cast<std::byte*>(p);
  // The image is filled front to back once: huge pages save most of its first-touch faults.
  (void)madvise(p, mapped_bytes_, MADV_HUGEPAGE);
}

MemoryImage::MemoryImage(ImageLayout layout)
    : layout_(std::move(layout)),
      memories_(std::make_unique<OpenMemories>(layout_.processes)),
      encoded_(layout_.page_count) {
  if (getrandom(&seed_, sizeof seed_, 0) != sizeof seed_) throw errno_error(errno, "no random seed");
}

std::shared_ptr<MemoryImage> MemoryImage::live(ImageLayout layout) {
  if (layout.page_count > kMaxImagePages) throw Error(Code::limit_exceeded, "image has too many pages");
  return std::shared_ptr<MemoryImage>(new MemoryImage(std::move(layout)));
}

MemoryImage::~MemoryImage() {
  if (pages_ != nullptr) munmap(pages_, mapped_bytes_);
}

std::shared_ptr<MemoryImage> MemoryImage::from_buffer(Bytes data, uint64_t address, AddressSpace space) {
  if (address % kPageBytes != 0)
    throw Error(Code::invalid_argument, "the address of an image must be a multiple of the page size");
  if (address >= kMaxAddress) throw Error(Code::invalid_argument, "the address of an image is too high");
  const uint64_t pages = (data.size() + kPageBytes - 1) / kPageBytes;
  ImageLayout layout;
  layout.space = std::move(space);
  ProcessLayout process;
  if (pages != 0) {
    Vma vma;
    vma.begin = address, vma.end = address + pages * kPageBytes;
    vma.prot = PROT_READ | PROT_WRITE, vma.kind = VmaKind::anonymous;
    process.vmas.push_back(vma);
    layout.runs.push_back({0, address, 0, pages});
  }
  layout.processes.push_back(std::move(process));
  auto image = std::make_shared<MemoryImage>(std::move(layout), pages);
  if (!data.empty()) std::memcpy(image->pages_, data.data(), data.size());
  return image;
}

std::shared_ptr<MemoryImage> MemoryImage::copy() const {
  auto out = std::make_shared<MemoryImage>(layout_, layout_.page_count);
  out->file_runs_ = file_runs_;
  ThreadPool::shared().parallel_for(page_count(), kCopyPages, [&](size_t begin, size_t end) {
    const std::byte* const bytes = read(begin, end - begin, out->page(begin));
    if (bytes != out->page(begin)) std::memcpy(out->page(begin), bytes, (end - begin) * kPageBytes);
  });
  return out;
}

const std::byte* MemoryImage::read(uint64_t first, uint64_t count, std::byte* buffer) const {
  if (!is_live()) return page(first);
  ProcessReader reader(layout_, *memories_, buffer);
  const uint64_t end = first + count;
  for (uint64_t at = first; at < end;) {
    const PageRun& run = layout_.run_of(at);
    const uint64_t n = std::min(end, run.first_page + run.count) - at;
    reader.add(run, at, n);
    at += n;
  }
  reader.flush();
  return buffer;
}

void MemoryImage::gather(std::span<const uint64_t> pages, std::byte* buffer) const {
  if (!is_live()) {
    for (uint64_t p : pages) {
      std::memcpy(buffer, page(p), kPageBytes);
      buffer += kPageBytes;
    }
    return;
  }
  ProcessReader reader(layout_, *memories_, buffer);
  for (uint64_t p : pages) reader.add(layout_.run_of(p), p, 1);
  reader.flush();
}

void MemoryImage::note_encoded(uint64_t page, const std::byte* bytes) const {
  if (is_live()) encoded_[page] = digest128({bytes, kPageBytes}, seed_);
}

bool MemoryImage::is_encoded(uint64_t page, const std::byte* bytes) const {
  if (!is_live()) return std::memcmp(this->page(page), bytes, kPageBytes) == 0;
  return encoded_[page] != Digest128{} && encoded_[page] == digest128({bytes, kPageBytes}, seed_);
}

PageBuffer::PageBuffer(uint64_t pages)
    : size_(pages * kPageBytes),
      bytes_(static_cast<std::byte*>(::operator new(size_, std::align_val_t{kPageBytes}))) {}

PageBuffer::~PageBuffer() {
  wipe();
  ::operator delete(bytes_, std::align_val_t{kPageBytes});
}

void PageBuffer::wipe() noexcept { medes::wipe(bytes_, size_); }

}  // namespace medes
