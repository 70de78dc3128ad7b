#include "store/child_file.h"

#include <dirent.h>
#include <unistd.h>

#include <cstring>

#include "common/checksum.h"
#include "common/error.h"
#include "store/seal.h"
#include "store/shm_file.h"

namespace medes {
namespace {

constexpr uint32_t kChildVersion = 1;
constexpr uint64_t kRecordOffset = 64;
constexpr uint64_t kStatesOffset = round_up(kRecordOffset + sizeof(ChangeRecord), 64);
constexpr char kInfix[] = ".child-";
static_assert(sizeof(ChildState) <= kRecordOffset);

uint64_t header_checksum(const ChildHeader& header) {
  return checksum64({reinterpret_cast<const std::byte*>(&header), offsetof(ChildHeader, header_checksum)});
}

uint64_t file_bytes_of(uint64_t page_count) {
  return kPageBytes + round_up(kStatesOffset + page_count, kPageBytes);
}

}  // namespace

void check_child_header(const ChildHeader& h, uint64_t file_bytes, const std::string& path) {
  const auto require = [&](bool ok, const char* what) {
    if (!ok) throw Error(Code::corrupt, std::string("child file: ") + what, path);
  };
  require(h.magic == kChildMagic, "wrong magic");
  if (h.version != kChildVersion)
    throw Error(Code::unsupported, "child file: version " + std::to_string(h.version) + " is not known here",
                path);
  require(h.header_checksum == header_checksum(h), "header checksum");
  require(h.page_count <= kMaxImagePages && h.process < kMaxProcesses, "header");
  require(h.file_bytes == file_bytes && h.file_bytes == file_bytes_of(h.page_count), "file length");
}

ChildParts child_parts(const ChildHeader& header, MutableBytes changing) {
  std::byte* const begin = changing.data();
  return {*reinterpret_cast<ChildState*>(begin),
          *reinterpret_cast<ChangeRecord*>(begin + kRecordOffset),
          {reinterpret_cast<std::atomic<uint8_t>*>(begin + kStatesOffset), header.page_count}};
}

struct ChildFile::Impl {
  std::string path;
  ChildHeader header{};
  ShmMapping changing;
  std::unique_ptr<ShmFd> fd;

  ChildParts parts() { return child_parts(header, changing.writable_bytes()); }
};

ChildFile::ChildFile() : impl_(std::make_unique<Impl>()) {}
ChildFile::~ChildFile() = default;

std::shared_ptr<ChildFile> ChildFile::create(const std::string& sandbox_path, uint32_t process,
                                             uint64_t inode, const Holder& holder,
                                             std::span<const std::byte> states,
                                             std::span<const MovedPages> moves) {
  const std::string path = path_of(sandbox_path, inode);
  if (states.size() > kMaxImagePages) throw Error(Code::limit_exceeded, "image is too large", path);
  ChildHeader header{};
  header.magic = kChildMagic;
  header.version = kChildVersion;
  header.process = process;
  header.page_count = states.size();
  header.file_bytes = file_bytes_of(states.size());
  header.inode = inode;
  header.header_checksum = header_checksum(header);

  ShmFileWriter file(path, header.file_bytes);
  std::byte* const out = file.bytes().data();
  std::memcpy(out, &header, sizeof header);
  std::memcpy(out + kPageBytes, &holder, sizeof holder);
  Holder none;
  std::memcpy(out + kPageBytes + sizeof holder, &none, sizeof none);
  auto& record = *reinterpret_cast<ChangeRecord*>(out + kPageBytes + kRecordOffset);
  const uint32_t kept = static_cast<uint32_t>(moves.size()) <= ChangeRecord::kMaxMoves
                            ? static_cast<uint32_t>(moves.size())
                            : ChangeRecord::kMaxMoves + 1;
  for (uint32_t i = 0; i < kept && i < ChangeRecord::kMaxMoves; ++i) record.moves[0][i] = moves[i];
  record.committed = ChangeRecord::pack(0, 0, kept);
  if (!states.empty()) std::memcpy(out + kPageBytes + kStatesOffset, states.data(), states.size());
  seal(path, file.bytes().first(kPageBytes), {});
  file.commit(0600);
  return open(path);
}

std::shared_ptr<ChildFile> ChildFile::open(const std::string& path) {
  auto opened = std::make_unique<ShmFd>(path, true);
  const ShmFd& fd = *opened;
  if (fd.size() < 2 * kPageBytes) throw Error(Code::corrupt, "child file: truncated header", path);
  std::shared_ptr<ChildFile> file(new ChildFile());
  Impl& impl = *file->impl_;
  impl.path = path;
  impl.header = read_header<ChildHeader>(fd, path);
  const ChildHeader& h = impl.header;
  check_child_header(h, fd.size(), path);
  check_seal(path, ShmMapping(fd.get(), 0, kPageBytes, false, path).bytes(), {});
  impl.changing = ShmMapping(fd.get(), kPageBytes, h.file_bytes - kPageBytes, true, path);
  impl.fd = std::move(opened);
  return file;
}

std::string ChildFile::path_of(const std::string& sandbox_path, uint64_t inode) {
  return sandbox_path + kInfix + std::to_string(inode);
}

std::vector<std::string> ChildFile::paths_of(const std::string& sandbox_path) {
  const size_t slash = sandbox_path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : sandbox_path.substr(0, slash + 1);
  const std::string prefix = sandbox_path.substr(slash == std::string::npos ? 0 : slash + 1) + kInfix;
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(folder.c_str()), closedir);
  if (!dir) return out;
  while (const dirent* entry = readdir(dir.get())) {
    const std::string name = entry->d_name;
    // Those with a further dot are being written, or were when an agent was killed.
    if (name.starts_with(prefix) && name.find('.', prefix.size()) == std::string::npos)
      out.push_back((slash == std::string::npos ? "" : folder) + name);
  }
  return out;
}

int ChildFile::fd() const { return impl_->fd->get(); }
uint32_t ChildFile::process() const { return impl_->header.process; }
uint64_t ChildFile::inode() const { return impl_->header.inode; }
ChangeRecord& ChildFile::record() { return impl_->parts().record; }
bool ChildFile::done() const { return impl_->parts().state.done.load(std::memory_order_acquire) != 0; }
void ChildFile::set_done() { impl_->parts().state.done.store(1, std::memory_order_release); }

std::span<std::atomic<uint8_t>> ChildFile::page_states() { return impl_->parts().pages; }

std::span<Holder, 2> ChildFile::holders() { return std::span<Holder, 2>(impl_->parts().state.holders); }

void ChildFile::add_holder(const Holder& holder) {
  auto both = holders();
  both[both[0].pid == 0 ? 0 : 1] = holder;
  std::atomic_thread_fence(std::memory_order_release);
}

void ChildFile::keep_only(const Holder& holder) {
  for (auto& h : holders())
    if (h.pid != holder.pid || h.fd != holder.fd || h.start_time_ticks != holder.start_time_ticks)
      h = Holder{};
  std::atomic_thread_fence(std::memory_order_release);
}

void ChildFile::unlink() noexcept { (void)unlink_in_folder(impl_->path); }

}  // namespace medes
