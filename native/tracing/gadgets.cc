#include "tracing/gadgets.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "common/error.h"
#include "image/foreign_memory.h"

namespace medes {
namespace {

constexpr std::string_view kSyscallRet("\x0f\x05\xc3", 3);
// The two encodings compilers use for `mov $15` before `syscall`.
constexpr std::array<std::string_view, 2> kSigreturn = {
    std::string_view("\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", 9),
    std::string_view("\xb8\x0f\x00\x00\x00\x0f\x05", 7)};
constexpr size_t kChunkOfText = 1u << 20;
constexpr size_t kOverlap = 16;
constexpr uint64_t kMaxTextBytes = 256u << 20;

struct Found {
  std::optional<uint64_t> syscall_ret, sigreturn;  // offsets from the mapping's begin
};

using FileKey = std::tuple<uint32_t, uint64_t, uint64_t, uint64_t>;  // device, inode, offset, length
std::mutex g_mutex;
std::map<FileKey, Found> g_cache;  // a node has few distinct executables; bounded below
constexpr size_t kMaxCached = 4096;

size_t read_text(pid_t pid, uint64_t address, char* out, size_t length) {
  const ssize_t n = ForeignMemory(pid).read(address, out, length);
  if (n >= 0) return static_cast<size_t>(n);
  throw errno_error(errno, "cannot read its memory", "pid " + std::to_string(pid),
                    "the agent needs CAP_SYS_PTRACE over the sandbox");
}

bool holds(pid_t pid, uint64_t address, std::string_view pattern) {
  char bytes[16];
  return read_text(pid, address, bytes, pattern.size()) == pattern.size() &&
         std::memcmp(bytes, pattern.data(), pattern.size()) == 0;
}

Found search(pid_t pid, const Vma& v) {
  Found found;
  std::vector<char> text(kChunkOfText + kOverlap);
  for (uint64_t at = v.begin; at < v.end && at - v.begin < kMaxTextBytes; at += kChunkOfText) {
    const size_t n = read_text(pid, at, text.data(), std::min<uint64_t>(text.size(), v.end - at));
    const std::string_view view(text.data(), n);
    if (!found.syscall_ret)
      if (const size_t i = view.find(kSyscallRet); i != view.npos) found.syscall_ret = at - v.begin + i;
    for (const auto& pattern : kSigreturn)
      if (!found.sigreturn)
        if (const size_t i = view.find(pattern); i != view.npos) found.sigreturn = at - v.begin + i;
    if (found.syscall_ret && found.sigreturn) break;
  }
  return found;
}

Found search_cached(pid_t pid, const Vma& v) {
  if (v.inode == 0) return search(pid, v);
  const FileKey key{v.device, v.inode, v.offset, v.end - v.begin};
  {
    const std::lock_guard lock(g_mutex);
    if (auto it = g_cache.find(key); it != g_cache.end()) return it->second;
  }
  const Found found = search(pid, v);
  const std::lock_guard lock(g_mutex);
  if (g_cache.size() >= kMaxCached) g_cache.clear();
  g_cache[key] = found;
  return found;
}

// C libraries first: they have both and are small.
int rank(const Vma& v) {
  const size_t slash = v.path.rfind('/');
  const std::string_view name =
      slash == std::string::npos ? std::string_view(v.path) : std::string_view(v.path).substr(slash + 1);
  if (name.starts_with("libc.") || name.starts_with("libc-") || name.starts_with("ld-")) return 0;
  return v.inode != 0 ? 1 : 2;
}

}  // namespace

Gadgets find_gadgets(pid_t pid, std::span<const Vma> vmas) {
  // A 64-bit program has its stack far above.
  if (std::all_of(vmas.begin(), vmas.end(),
                  [](const Vma& v) { return v.end <= 1ull << 32 || v.path == "[vsyscall]"; }))
    throw Error(Code::unsupported, "it is a 32-bit program", "pid " + std::to_string(pid));
  std::vector<const Vma*> texts;
  for (const auto& v : vmas)
    if ((v.prot & (PROT_READ | PROT_EXEC)) == (PROT_READ | PROT_EXEC) && v.path != "[vsyscall]")
      texts.push_back(&v);
  std::stable_sort(texts.begin(), texts.end(),
                   [](const Vma* a, const Vma* b) { return rank(*a) < rank(*b); });
  Gadgets gadgets;
  for (const Vma* v : texts) {
    const Found found = search_cached(pid, *v);
    // A remembered place is looked at again: the file may have been replaced under the same inode.
    if (gadgets.syscall_ret == 0 && found.syscall_ret &&
        holds(pid, v->begin + *found.syscall_ret, kSyscallRet))
      gadgets.syscall_ret = v->begin + *found.syscall_ret;
    if (gadgets.sigreturn == 0 && found.sigreturn &&
        (holds(pid, v->begin + *found.sigreturn, kSigreturn[0]) ||
         holds(pid, v->begin + *found.sigreturn, kSigreturn[1])))
      gadgets.sigreturn = v->begin + *found.sigreturn;
    if (gadgets.syscall_ret != 0 && gadgets.sigreturn != 0) return gadgets;
  }
  throw Error(Code::unsupported, "its program text has no place to run injected calls from",
              "pid " + std::to_string(pid));
}

}  // namespace medes
