// Everything that is kept of a dedup'd sandbox, in one shared-memory file that outlives the agent:
//   header | meta (opaque to the core: the agent's JSON) | image layout | encoded image | page state map
// The page state map is the only mutable part: one byte an image page, written by the live driver before
// the fact it records may become visible in the sandbox, so that a restarted agent can go on from it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "codec/encoded_image.h"
#include "image/image.h"
#include "store/change_record.h"
#include "store/shm_file.h"

namespace medes {

enum class PageState : uint8_t {
  resident = 0,  // still (or again) the sandbox's own: never write it back
  evicting = 1,  // may be gone: ask the kernel (pagemap) before deciding
  evicted = 2,   // only the encoded form exists
  restored = 3,  // placed by a restore op
};

// Whether a kill of the agent stops the process, as SIGSTOP does, for the next agent to continue.
enum StopNote : uint32_t {
  kNotStopped = 0,
  kMayBeStopped = 1,  // the signal was sent, or was about to be
  kStopped = 2,       // it was sent, and no thread was running
};

// Per process of the layout: where its userfaultfd is, written at eviction.
struct UffdRecord {
  int32_t pid = 0;
  int32_t fd = -1;  // descriptor number inside the process
  uint64_t start_time_ticks = 0;
  uint64_t inode = 0;          // of the anonymous inode, 0 if unknown
  uint64_t frame_address = 0;  // where injected calls keep their return frame during the eviction
  uint32_t stop = 0;           // a StopNote
  int32_t keeper = 0;          // who holds a copy beyond the agent's death (serving/keeper.h); 0: nobody
};

class SandboxFile {
 public:
  // Throws store_full, already_exists, io.
  static std::shared_ptr<SandboxFile> create(const std::string& path, Bytes meta, const ImageLayout& layout,
                                             Bytes encoded_blob);
  // Throws not_found, corrupt, permission_denied, unsupported (another version).
  static std::shared_ptr<SandboxFile> open(const std::string& path, Owners owners = Owners::us);
  ~SandboxFile();

  Bytes meta() const;
  const ImageLayout& layout() const;
  const EncodedImage& encoded() const;
  std::span<std::atomic<uint8_t>> page_states();
  std::span<UffdRecord> uffds();      // one a process
  std::span<ChangeRecord> changes();  // one a process
  const std::string& path() const;
  uint64_t file_bytes() const;
  bool may_be_stopped();  // so that continue_stopped() has somebody to continue
  // Continues processes that the death of the agent stopped in the middle of an eviction.
  void continue_stopped();
  // Files of forked children that still miss pages: of this sandbox, beside its own.
  std::vector<std::string> child_paths() const;
  void unlink();  // and the children's

 private:
  SandboxFile();
  static std::shared_ptr<SandboxFile> read(const std::string& path, Owners owners, bool sealed = false);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace medes
