#include "procfs/program_data.h"

#include <elf.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "common/error.h"
#include "image/foreign_memory.h"

namespace medes {
namespace {

constexpr size_t kMaxSegments = 64;
constexpr uint64_t kPageMask = kPageBytes - 1;
constexpr uint64_t kMaxFileOffset = 1ull << 62;

bool read_page(pid_t pid, uint64_t address, std::array<std::byte, kPageBytes>& out) {
  const ssize_t n = ForeignMemory(pid).read(address, out.data(), out.size());
  if (n < 0)
    throw errno_error(errno, "cannot read its memory", "pid " + std::to_string(pid),
                      "the agent needs CAP_SYS_PTRACE over the sandbox");
  return n == static_cast<ssize_t>(out.size());
}

bool same_file(const Vma& a, const Vma& b) { return a.inode == b.inode && a.device == b.device; }

}  // namespace

std::vector<AddressRange> writable_segments(std::span<const std::byte, kPageBytes> page) {
  std::vector<AddressRange> out;
  Elf64_Ehdr header;
  std::memcpy(&header, page.data(), sizeof header);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_ident[EI_DATA] != ELFDATA2LSB || (header.e_type != ET_EXEC && header.e_type != ET_DYN) ||
      header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum > kMaxSegments ||
      header.e_phoff > page.size() || header.e_phnum * sizeof(Elf64_Phdr) > page.size() - header.e_phoff)
    return out;
  for (size_t i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    std::memcpy(&segment, page.data() + header.e_phoff + i * sizeof segment, sizeof segment);
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) == 0 || (segment.p_flags & PF_X) != 0) continue;
    if (segment.p_offset > kMaxFileOffset || segment.p_filesz > kMaxFileOffset) continue;
    out.push_back(
        {segment.p_offset & ~kPageMask, (segment.p_offset + segment.p_filesz + kPageMask) & ~kPageMask});
  }
  return out;
}

std::vector<uint8_t> find_program_data(pid_t pid, std::span<const Vma> vmas) {
  std::vector<uint8_t> out(vmas.size(), 0);
  const Vma* start = nullptr;  // the mapping of the current file's first bytes
  std::vector<AddressRange> segments;
  bool segments_known = false;
  for (size_t i = 0; i < vmas.size(); ++i) {
    const Vma& v = vmas[i];
    if (v.kind != VmaKind::file_private || v.inode == 0) continue;
    if (v.offset == 0 && (v.prot & PROT_READ) != 0) start = &v, segments_known = false;
    if (start == nullptr || !same_file(v, *start)) continue;
    if (v.prot != PROT_READ && v.prot != (PROT_READ | PROT_WRITE)) continue;
    if (v.offset == 0 && v.prot == PROT_READ) continue;  // headers and constants
    if (!segments_known) {
      std::array<std::byte, kPageBytes> page;
      segments = read_page(pid, start->begin, page) ? writable_segments(page) : std::vector<AddressRange>();
      segments_known = true;
    }
    const uint64_t end = v.offset + (v.end - v.begin);
    out[i] = std::any_of(segments.begin(), segments.end(),
                         [&](const AddressRange& s) { return s.begin <= v.offset && end <= s.end; });
  }
  return out;
}

std::vector<Vma> with_anonymous_runs(std::span<const Vma> vmas, std::span<const FileRun> runs) {
  std::vector<Vma> out;
  out.reserve(vmas.size() + 2 * runs.size());
  size_t next = 0;
  for (Vma v : vmas) {
    for (; next < runs.size() && runs[next].begin < v.end; ++next) {
      const FileRun& r = runs[next];
      if (r.begin > v.begin) {
        Vma before = v;
        before.end = r.begin;
        out.push_back(std::move(before));
      }
      Vma own;
      own.begin = r.begin, own.end = r.end, own.prot = v.prot, own.kind = VmaKind::anonymous;
      out.push_back(std::move(own));
      v.offset += r.end - v.begin;
      v.begin = r.end;
    }
    if (v.begin < v.end) out.push_back(std::move(v));
  }
  return out;
}

}  // namespace medes
