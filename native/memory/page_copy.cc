#include "memory/page_copy.h"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/error.h"
#include "common/thread_pool.h"

namespace medes {
namespace {

constexpr size_t kIovecs = 1024;       // IOV_MAX
constexpr uint64_t kPartPages = 2048;  // 8 MiB: some milliseconds of work

// A few runs of one process with a place of their own in the image, so that parts are copied side by side.
struct Part {
  uint32_t process = 0;
  uint64_t first_page = 0;
  std::vector<PageSpan> spans, got;
  uint64_t wanted_pages = 0, got_pages = 0;
};

std::vector<Part> make_parts(std::span<const std::vector<PageSpan>> wanted) {
  std::vector<Part> parts;
  uint64_t pages = 0;
  for (uint32_t process = 0; process < wanted.size(); ++process) {
    bool fresh = true;  // parts do not reach from one process into the next
    for (PageSpan rest : wanted[process]) {
      while (rest.count > 0) {
        if (fresh || parts.back().wanted_pages == kPartPages || parts.back().spans.size() == kIovecs) {
          parts.push_back({process, pages, {}, {}, 0, 0});
          fresh = false;
        }
        Part& part = parts.back();
        const uint64_t n = std::min(rest.count, kPartPages - part.wanted_pages);
        part.spans.push_back({rest.address, n});
        part.wanted_pages += n;
        pages += n;
        rest.address += n * kPageBytes;
        rest.count -= n;
      }
    }
  }
  return parts;
}

Error read_error(int err, pid_t pid) {
  const std::string object = "pid " + std::to_string(pid);
  if (err == ESRCH) return Error(Code::process_gone, "the process has exited", object);
  return errno_error(err, "cannot read its memory", object,
                     "the agent needs CAP_SYS_PTRACE over the sandbox");
}

void copy_part(pid_t pid, Part& part, MemoryImage& image) {
  size_t i = 0;
  while (i < part.spans.size()) {
    iovec remote[kIovecs];
    size_t n = 0;
    uint64_t bytes = 0;
    for (size_t j = i; j < part.spans.size(); ++j) {
      const uint64_t length = part.spans[j].count * kPageBytes;
      remote[n++] = {reinterpret_cast<void*>(part.spans[j].address), length};
      bytes += length;
    }
    iovec local = {image.page(part.first_page + part.got_pages), bytes};
    const ssize_t read = process_vm_readv(pid, &local, 1, remote, n, 0);
    if (read < 0 && errno == EINTR) continue;
    if (read < 0 && errno != EFAULT) throw read_error(errno, pid);
    uint64_t pages = read < 0 ? 0 : static_cast<uint64_t>(read) / kPageBytes;
    part.got_pages += pages;
    while (i < part.spans.size() && pages >= part.spans[i].count) {
      pages -= part.spans[i].count;
      part.got.push_back(part.spans[i++]);
    }
    if (i == part.spans.size()) return;
    if (pages > 0) part.got.push_back({part.spans[i].address, pages});
    ++i;  // the rest of this run is gone
  }
}

void enter(uint32_t process, const PageSpan& span, uint64_t first_page, std::vector<PageRun>& runs) {
  if (!runs.empty() && runs.back().process == process &&
      runs.back().address + runs.back().count * kPageBytes == span.address) {
    runs.back().count += span.count;
  } else {
    runs.push_back({process, span.address, first_page, span.count});
  }
}

}  // namespace

void copy_pages(std::span<const pid_t> pids, std::span<const std::vector<PageSpan>> wanted,
                MemoryImage& image) {
  std::vector<Part> parts = make_parts(wanted);
  ThreadPool::shared().parallel_for(parts.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) copy_part(pids[parts[i].process], parts[i], image);
  });
  uint64_t pages = 0;
  for (const Part& part : parts) {
    // Close what parts before left free.
    if (pages != part.first_page)
      std::memmove(image.page(pages), image.page(part.first_page), part.got_pages * kPageBytes);
    for (const PageSpan& span : part.got) {
      enter(part.process, span, pages, image.layout().runs);
      pages += span.count;
    }
  }
  image.layout().page_count = pages;
}

}  // namespace medes
