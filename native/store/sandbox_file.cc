#include "store/sandbox_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>

#include "common/checksum.h"
#include "procfs/proc.h"
#include "store/child_file.h"
#include "store/sandbox_format.h"
#include "store/seal.h"
#include "store/shm_file.h"

namespace medes {

struct SandboxFile::Impl {
  std::string path;
  SandboxHeader header{};
  ShmMapping fixed;     // [0, mutable_offset), read-only
  ShmMapping changing;  // [mutable_offset, file_bytes), writable
  std::optional<SandboxSections> sections;
  SandboxFileState state() { return sandbox_file_state(header, changing.writable_bytes()); }
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
  set_sandbox_offsets(header);
  header.meta_checksum = checksum64(meta);
  header.layout_checksum = checksum64(layout_bytes);
  header.header_checksum = sandbox_header_checksum(header);

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
  check_sandbox_header(h, fd.size(), path);
  impl.fixed = ShmMapping(fd.get(), 0, h.mutable_offset, false, path);
  impl.changing = ShmMapping(fd.get(), h.mutable_offset, h.file_bytes - h.mutable_offset, true, path);
  if (sealed) check_seal(path, impl.fixed.bytes().first(kPageBytes), impl.fixed.bytes().subspan(kPageBytes));
  const auto key = store_key_of(path);
  impl.sections.emplace(parse_sandbox_sections(h, impl.fixed.bytes(), path, key ? &*key : nullptr));
  return file;
}

Bytes SandboxFile::meta() const { return impl_->sections->meta; }
const ImageLayout& SandboxFile::layout() const { return impl_->sections->layout; }
const EncodedImage& SandboxFile::encoded() const { return impl_->sections->encoded; }
const std::string& SandboxFile::path() const { return impl_->path; }
uint64_t SandboxFile::file_bytes() const { return impl_->header.file_bytes; }

std::span<UffdRecord> SandboxFile::uffds() { return impl_->state().uffds; }
std::span<ChangeRecord> SandboxFile::changes() { return impl_->state().changes; }
std::span<std::atomic<uint8_t>> SandboxFile::page_states() { return impl_->state().pages; }

bool SandboxFile::may_be_stopped() {
  const auto all = uffds();
  return std::any_of(all.begin(), all.end(), [](UffdRecord& record) {
    return std::atomic_ref(record.stop).load(std::memory_order_acquire) != kNotStopped;
  });
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
