// Children forked while pages are missing: what they get of their parent, and the file that keeps it.
#include <utility>

#include "procfs/proc.h"
#include "serving/process_memory.h"

namespace medes {

std::shared_ptr<ProcessMemory> ProcessMemory::fork(Uffd uffd) const {
  // Whatever fails from here on, the descriptor is left open and not closed (~ProcessMemory).
  auto child = std::make_shared<ProcessMemory>(kForkedChild, process_, layout_, std::move(uffd), states_);
  child->count_missing();
  // `evicting` is only met while an interrupted eviction is cleared up: the page may be there or not, and
  // placing finds out.
  std::vector<std::byte> states(states_.size());
  for (uint64_t i = first_page_; i < end_page_; ++i) {
    const PageState s = state(i);
    states[i] = static_cast<std::byte>(s == PageState::evicting ? PageState::evicted : s);
  }
  for (const uint64_t page : unwanted_by_child()) states[page] = static_cast<std::byte>(PageState::resident);
  child->own_states_ = std::vector<std::atomic<uint8_t>>(states.size());
  for (size_t i = 0; i < states.size(); ++i) child->own_states_[i] = static_cast<uint8_t>(states[i]);
  child->states_ = child->own_states_;
  child->segments_ = segments_;
  child->count_missing();
  const auto file = keep_child(child->uffd_, states);
  if (!file) return child;
  if (file->record().sets() > 0) {
    child->segments_ = {};
    child->recover_from(file, sandbox_path_);
    return child;
  }
  child->states_ = file->page_states();
  child->keep_in(file, sandbox_path_);
  child->count_missing();
  return child;
}

// Image pages that a child does not get: MADV_WIPEONFORK gives it zeros there, and a guard region stays one.
// The thread that forks waits for us meanwhile. Of a process that is a forked child itself nothing is known
// but its memory; what it was not given it has not either.
std::vector<uint64_t> ProcessMemory::unwanted_by_child() const {
  std::vector<uint64_t> out;
  if (is_forked_child()) return out;
  const auto add = [&](uint64_t begin, uint64_t end) {
    for (uint64_t a = begin; a < end; a += kPageBytes)
      if (const auto origin = segments_.origin_of(a))
        if (const uint64_t page = layout_.find(process_, *origin); page != ImageLayout::kNoPage)
          out.push_back(page);
  };
  try {
    for (const AddressRange& r : ranges_with_flag(pid_, "wf")) add(r.begin, r.end);
    const Pagemap pagemap(pid_);
    for (const auto& s : segments_.all()) {
      std::vector<PageSpan> guards;
      pagemap.guard_pages(s.begin, s.end, guards);
      for (const auto& g : guards) add(g.address, g.address + g.count * kPageBytes);
    }
  } catch (const Error&) {  // it is being killed, and the child with it
  }
  return out;
}

void ProcessMemory::keep_in(std::shared_ptr<ChildFile> file, const std::string& sandbox_path) {
  file_ = std::move(file);
  told_when_gone_ = keeper::ToldWhenGone(fd(), file_->fd());
  log_.keep_in(file_->record());
  sandbox_path_ = sandbox_path;
}

// From here on our keeper holds the child's userfaultfd, and no other. At every instant the file names one
// that does: of two (an agent was killed in here) one may have given it up.
void ProcessMemory::hold(ChildFile& file, const Holder& here) {
  for (Holder& h : file.holders())
    if (h.pid != 0 && !keeper::take(h, file.inode())) h = Holder{};
  if (Holder& second = file.holders()[1]; file.holders()[0].pid != 0 && second.pid != 0) {
    keeper::release(second, file.inode());
    second = Holder{};
  }
  file.add_holder(here);
  for (const Holder& h : file.holders())
    if (h.pid != 0 && (h.pid != here.pid || h.fd != here.fd)) keeper::release(h, file.inode());
  file.keep_only(here);
}

// Nothing where the store has no room: the child then depends on us alone, as long as it misses pages.
std::shared_ptr<ChildFile> ProcessMemory::keep_child(const Uffd& uffd,
                                                     std::span<const std::byte> states) const {
  if (sandbox_path_.empty()) return nullptr;
  const Holder here = keeper::holder_of(uffd.fd());
  try {
    return ChildFile::create(sandbox_path_, process_, uffd.inode(), here, states, moved_pages());
  } catch (const Error& e) {
    if (e.code != Code::already_exists) return nullptr;
  }
  // An agent that was killed while it applied the fork had come so far.
  const auto file = ChildFile::open(ChildFile::path_of(sandbox_path_, uffd.inode()));
  hold(*file, here);
  return file;
}

std::shared_ptr<ProcessMemory> ProcessMemory::of_child(const ImageLayout& layout,
                                                       std::shared_ptr<ChildFile> file, Uffd uffd,
                                                       const std::string& sandbox_path) {
  if (file->page_states().size() != layout.page_count || file->process() >= layout.processes.size())
    throw Error(Code::corrupt, "a child file is of another image", sandbox_path);
  auto child = std::make_shared<ProcessMemory>(kForkedChild, file->process(), layout, std::move(uffd),
                                               file->page_states());
  child->recover_from(std::move(file), sandbox_path);
  return child;
}

void ProcessMemory::recover_from(std::shared_ptr<ChildFile> file, const std::string& sandbox_path) {
  states_ = file->page_states();
  count_missing();
  hold(*file, keeper::holder_of(fd()));
  keep_in(std::move(file), sandbox_path);
  add_mappings_of_layout();
  recover_moves();
}

}  // namespace medes
