#include "store/sandbox_file.h"

#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>

#include "common/checksum.h"
#include "memory/proc.h"
#include "store/child_file.h"
#include "store/sandbox_format.h"
#include "store/seal.h"
#include "store/shm_file.h"

namespace medes {

namespace {

Bytes header_prefix(const SandboxHeader& header) {
  return {reinterpret_cast<const std::byte*>(&header), offsetof(SandboxHeader, header_checksum)};
}

uint64_t changes_offset(uint64_t process_count) { return round_up(process_count * sizeof(UffdRecord), 64); }
uint64_t states_offset(uint64_t process_count) {
  return round_up(changes_offset(process_count) + process_count * sizeof(ChangeRecord), 64);
}

// Offsets follow from the lengths alone; a header that says otherwise is refused.
void set_offsets(SandboxHeader& h) {
  h.layout_offset = round_up(kPageBytes + h.meta_bytes, 64);
  h.encoded_offset = round_up(h.layout_offset + h.layout_bytes, kPageBytes);
  h.mutable_offset = round_up(h.encoded_offset + h.encoded_bytes, kPageBytes);
  h.file_bytes = h.mutable_offset + round_up(states_offset(h.process_count) + h.page_count, kPageBytes);
}

void check_header(const SandboxHeader& h, uint64_t file_bytes, const std::string& path) {
  auto require = [&](bool ok, const char* what) {
    if (!ok) throw Error(Code::corrupt, std::string("sandbox file: ") + what, path);
  };
  require(h.magic == kSandboxMagic, "wrong magic");
  if (h.version < kSandboxVersionOldest || h.version > kSandboxVersion)
    throw Error(Code::unsupported,
                "sandbox file: version " + std::to_string(h.version) + " is not known here", path);
  require(h.header_checksum == checksum64(header_prefix(h)), "header checksum");
  require(h.header_bytes == kPageBytes, "header length");
  require(h.page_count <= kMaxImagePages, "page count");
  require(h.process_count <= kMaxProcesses, "process count");
  // No section is longer than the file: the sums in set_offsets cannot overflow.
  require(h.meta_bytes <= file_bytes && h.layout_bytes <= file_bytes && h.encoded_bytes <= file_bytes,
          "section lengths");
  SandboxHeader derived = h;
  set_offsets(derived);
  require(std::memcmp(&derived, &h, sizeof h) == 0, "section offsets");
  require(h.file_bytes == file_bytes, "file length");
}

}  // namespace

struct SandboxFile::Impl {
  std::string path;
  SandboxHeader header{};
  ShmMapping fixed;     // [0, mutable_offset), read-only
  ShmMapping changing;  // [mutable_offset, file_bytes), writable
  ImageLayout layout;
  std::optional<EncodedImage> encoded;

  Bytes section(uint64_t offset, uint64_t length) const { return fixed.bytes().subspan(offset, length); }
};

SandboxFile::SandboxFile() : impl_(std::make_unique<Impl>()) {}
SandboxFile::~SandboxFile() = default;

std::shared_ptr<SandboxFile> SandboxFile::create(const std::string& path, Bytes meta,
                                                 const ImageLayout& layout, Bytes encoded_blob) {
  const auto key = store_key_of(path);
  (void)EncodedImage::open(encoded_blob,
                           key ? &*key : nullptr);  // before there is a file that cannot be read
  const std::vector<std::byte> layout_bytes = layout.serialise();
  SandboxHeader header{};
  header.magic = kSandboxMagic;
  header.version = kSandboxVersion;
  header.header_bytes = kPageBytes;
  header.page_count = layout.page_count;
  header.process_count = layout.processes.size();
  header.meta_bytes = meta.size();
  header.layout_bytes = layout_bytes.size();
  header.encoded_bytes = encoded_blob.size();
  if (header.page_count > kMaxImagePages || header.process_count > kMaxProcesses)
    throw Error(Code::limit_exceeded, "image is too large for a sandbox file", path);
  set_offsets(header);
  header.meta_checksum = checksum64(meta);
  header.layout_checksum = checksum64(layout_bytes);
  header.header_checksum = checksum64(header_prefix(header));

  ShmFileWriter file(path, header.file_bytes);
  std::byte* out = file.bytes().data();
  auto copy = [out](uint64_t offset, Bytes from) {
    if (!from.empty()) std::memcpy(out + offset, from.data(), from.size());
  };
  copy(0, {reinterpret_cast<const std::byte*>(&header), sizeof header});
  copy(kPageBytes, meta);
  copy(header.layout_offset, layout_bytes);
  copy(header.encoded_offset, encoded_blob);
  // Fresh pages are zero: every page state is `resident`, nothing has moved, and the records of descriptors
  // need only their "none" value.
  static_assert(static_cast<uint8_t>(PageState::resident) == 0);
  for (uint64_t i = 0; i < header.process_count; ++i) {
    const UffdRecord none;
    std::memcpy(out + header.mutable_offset + i * sizeof none, &none, sizeof none);
  }
  seal(path, file.bytes().first(kPageBytes),
       file.bytes().subspan(kPageBytes, header.mutable_offset - kPageBytes));
  file.commit(0600);
  return read(path, Owners::us);
}

std::shared_ptr<SandboxFile> SandboxFile::open(const std::string& path, Owners owners) {
  return read(path, owners, owners == Owners::us);
}

std::shared_ptr<SandboxFile> SandboxFile::read(const std::string& path, Owners owners, bool sealed) {
  ShmFd fd(path, true, owners);
  if (fd.size() < kPageBytes) throw Error(Code::corrupt, "sandbox file: truncated header", path);
  std::shared_ptr<SandboxFile> file(new SandboxFile());
  Impl& impl = *file->impl_;
  impl.path = path;
  impl.header = read_header<SandboxHeader>(fd, path);
  const SandboxHeader& h = impl.header;
  check_header(h, fd.size(), path);
  impl.fixed = ShmMapping(fd.get(), 0, h.mutable_offset, false, path);
  impl.changing = ShmMapping(fd.get(), h.mutable_offset, h.file_bytes - h.mutable_offset, true, path);
  if (sealed) check_seal(path, impl.fixed.bytes().first(kPageBytes), impl.fixed.bytes().subspan(kPageBytes));
  if (checksum64(file->meta()) != h.meta_checksum)
    throw Error(Code::corrupt, "sandbox file: checksum of the meta section", path);
  const Bytes layout_bytes = impl.section(h.layout_offset, h.layout_bytes);
  if (checksum64(layout_bytes) != h.layout_checksum)
    throw Error(Code::corrupt, "sandbox file: checksum of the image layout", path);
  impl.layout = ImageLayout::parse(layout_bytes);
  const auto key = store_key_of(path);
  impl.encoded.emplace(
      EncodedImage::open(impl.section(h.encoded_offset, h.encoded_bytes), key ? &*key : nullptr));
  if (impl.layout.page_count != h.page_count || impl.layout.processes.size() != h.process_count ||
      impl.encoded->page_count() != h.page_count)
    throw Error(Code::corrupt, "sandbox file: sections disagree on the image's size", path);
  return file;
}

Bytes SandboxFile::meta() const { return impl_->section(kPageBytes, impl_->header.meta_bytes); }
const ImageLayout& SandboxFile::layout() const { return impl_->layout; }
const EncodedImage& SandboxFile::encoded() const { return *impl_->encoded; }
const std::string& SandboxFile::path() const { return impl_->path; }
uint64_t SandboxFile::file_bytes() const { return impl_->header.file_bytes; }

std::span<UffdRecord> SandboxFile::uffds() {
  return {reinterpret_cast<UffdRecord*>(impl_->changing.writable_bytes().data()),
          impl_->header.process_count};
}

std::span<ChangeRecord> SandboxFile::changes() {
  std::byte* changes = impl_->changing.writable_bytes().data() + changes_offset(impl_->header.process_count);
  return {reinterpret_cast<ChangeRecord*>(changes), impl_->header.process_count};
}

std::span<std::atomic<uint8_t>> SandboxFile::page_states() {
  std::byte* states = impl_->changing.writable_bytes().data() + states_offset(impl_->header.process_count);
  return {reinterpret_cast<std::atomic<uint8_t>*>(states), impl_->header.page_count};
}

void SandboxFile::continue_stopped() {
  for (auto& record : uffds()) {
    const std::atomic_ref note(record.stop);
    if (note.load(std::memory_order_acquire) == kNotStopped) continue;
    try {
      if (process_start_time(record.pid) == record.start_time_ticks) (void)kill(record.pid, SIGCONT);
    } catch (const Error&) {  // it has exited
    }
    note.store(kNotStopped, std::memory_order_release);
  }
}

std::vector<std::string> SandboxFile::child_paths() const { return ChildFile::paths_of(impl_->path); }

void SandboxFile::unlink() {
  for (const auto& path : child_paths()) (void)unlink_in_folder(path);
  if (!unlink_in_folder(impl_->path) && errno != ENOENT)
    throw errno_error(errno, "cannot remove sandbox file", impl_->path);
}

}  // namespace medes
