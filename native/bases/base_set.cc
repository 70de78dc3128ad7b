#include "bases/base_set.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <condition_variable>
#include <numeric>
#include <shared_mutex>

#include "store/slab.h"

namespace medes {

namespace {

using Clock = std::chrono::steady_clock;

// A remote base: address space without memory until pages arrive. Bits of `present` are set, with release
// order, after a page's bytes are in place; `loading` marks pages that some thread is reading now.
struct RemoteBase {
  RemoteBase(uint64_t pages, std::shared_ptr<PageReader> r)
      : page_count(pages),
        reader(std::move(r)),
        present((pages + 63) / 64),
        wanted((pages + 63) / 64),
        loading((pages + 63) / 64) {
    void* mapped = mmap(nullptr, pages * kPageBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw errno_error(errno, "cannot reserve address space for a remote base");
    memory = static_cast<std::byte*>(mapped);
  }
  ~RemoteBase() { munmap(memory, page_count * kPageBytes); }
  RemoteBase(const RemoteBase&) = delete;
  RemoteBase& operator=(const RemoteBase&) = delete;

  bool is_present(uint64_t page) const {
    return present[page / 64].load(std::memory_order_acquire) >> (page % 64) & 1;
  }
  void set_present(uint64_t page) {
    present[page / 64].fetch_or(1ull << (page % 64), std::memory_order_release);
  }
  // `loading` is guarded by BaseSet::Impl::load_mutex.
  bool is_loading(uint64_t page) const { return loading[page / 64] >> (page % 64) & 1; }
  void set_loading(uint64_t page, bool on) {
    if (on)
      loading[page / 64] |= 1ull << (page % 64);
    else
      loading[page / 64] &= ~(1ull << (page % 64));
  }

  const uint64_t page_count;
  const std::shared_ptr<PageReader> reader;
  std::byte* memory = nullptr;
  std::vector<std::atomic<uint64_t>> present;
  std::vector<std::atomic<uint64_t>> wanted;  // to be kept by the node
  std::vector<uint64_t> loading;
};

struct Slot {
  uint64_t base_id = 0;
  AddressSpace space;
  std::shared_ptr<Slab> slab;          // local, or
  std::unique_ptr<RemoteBase> remote;  // remote

  BaseView view() const {
    if (slab) return slab->view();
    return {base_id, {remote->memory, static_cast<size_t>(remote->page_count * kPageBytes)}, space};
  }
};

struct PageRef {
  Slot* slot = nullptr;
  uint64_t page = 0;
  auto operator<=>(const PageRef&) const = default;
};

// Reads of one peer that go out together.
struct PeerReads {
  PageReader* reader = nullptr;
  std::vector<ReadRequest> requests;
  std::vector<PageRef> first_pages;  // of each request
};

// Sorted, distinct pages → runs, one request a run of neighbours, split by the transport's limits.
std::vector<PeerReads> coalesce(const std::vector<PageRef>& pages) {
  std::vector<PeerReads> peers;
  for (size_t i = 0; i < pages.size();) {
    RemoteBase& remote = *pages[i].slot->remote;
    const size_t max_pages = kMaxReadBytes / kPageBytes;
    size_t run = 1;
    while (run < max_pages && i + run < pages.size() && pages[i + run].slot == pages[i].slot &&
           pages[i + run].page == pages[i].page + run)
      ++run;
    auto peer = std::find_if(peers.begin(), peers.end(),
                             [&](const PeerReads& p) { return p.reader == remote.reader.get(); });
    if (peer == peers.end()) peer = peers.insert(peers.end(), PeerReads{remote.reader.get(), {}, {}});
    const uint64_t offset = pages[i].page * kPageBytes;
    peer->requests.push_back(
        {pages[i].slot->base_id, offset, static_cast<uint32_t>(run * kPageBytes), remote.memory + offset});
    peer->first_pages.push_back(pages[i]);
    i += run;
  }
  return peers;
}

struct SubmittedBatch {
  std::unique_ptr<ReadBatch> batch;
  const PeerReads* peer = nullptr;
  size_t first = 0, count = 0;
};

// Cuts a peer's requests into batches within kMaxReadsPerBatch and kMaxBatchBytes and submits them all.
void submit_all(const PeerReads& peer, std::vector<SubmittedBatch>& out) {
  const size_t n = peer.requests.size();
  for (size_t first = 0; first < n;) {
    size_t count = 0, bytes = 0;
    while (first + count < n && count < kMaxReadsPerBatch &&
           bytes + peer.requests[first + count].length <= kMaxBatchBytes)
      bytes += peer.requests[first + count++].length;
    SubmittedBatch submitted{nullptr, &peer, first, count};
    submitted.batch = peer.reader->submit(std::span(peer.requests).subspan(first, count));
    out.push_back(std::move(submitted));
    first += count;
  }
}

}  // namespace

struct BaseSet::Impl {
  mutable std::shared_mutex slots_mutex;
  std::vector<std::unique_ptr<Slot>> slots;  // only grows
  std::mutex load_mutex;
  std::condition_variable load_done;
  size_t loads_in_flight = 0;  // ensure() calls that have claimed pages
  std::array<std::atomic<uint64_t>, kTransports> bytes_read{};
  std::shared_ptr<KeptPages> kept;  // with its domain, set before any use
  std::string domain;

  uint32_t add(std::unique_ptr<Slot> slot) {
    std::unique_lock lock(slots_mutex);
    for (size_t i = 0; i < slots.size(); ++i)
      if (slots[i]->base_id == slot->base_id) return static_cast<uint32_t>(i);
    if (slots.size() >= kMaxBasesPerImage) throw Error(Code::limit_exceeded, "bases in one set");
    slots.push_back(std::move(slot));
    return static_cast<uint32_t>(slots.size() - 1);
  }
  Slot* slot(uint32_t index) const {
    std::shared_lock lock(slots_mutex);
    return index < slots.size() ? slots[index].get() : nullptr;
  }
  Slot& slot_or_throw(uint32_t index) const {
    Slot* found = slot(index);
    if (!found) throw Error(Code::not_found, "no such slot", "slot " + std::to_string(index));
    return *found;
  }

  Code absent_pages(std::span<const Extent> extents, std::vector<PageRef>& out) const;
  std::vector<PageRef> claim(const std::vector<PageRef>& absent);  // the caller holds load_mutex
  void release(const std::vector<PageRef>& claimed);
};

// Claimed pages and the batches that read them; the claims end with it.
struct BaseSet::Load::Parts {
  Parts(Impl& set, std::vector<PageRef> pages) : impl(set), claimed(std::move(pages)) {}
  ~Parts() {
    batches.clear();  // until nothing writes into the pages any more
    impl.release(claimed);
  }
  void submit() {
    peers = coalesce(claimed);
    for (const PeerReads& peer : peers) submit_all(peer, batches);
  }
  Code collect(Clock::time_point deadline);

  Impl& impl;
  const std::vector<PageRef> claimed;
  std::vector<PeerReads> peers;
  std::vector<SubmittedBatch> batches;
};

// The remote pages of `extents` that are not present, sorted and distinct.
Code BaseSet::Impl::absent_pages(std::span<const Extent> extents, std::vector<PageRef>& out) const {
  out.clear();
  for (const Extent& extent : extents) {
    Slot* s = slot(extent.base_slot);
    if (!s) return Code::invalid_argument;
    const uint64_t size = s->slab ? s->slab->bytes().size() : s->remote->page_count * kPageBytes;
    if (extent.offset > size || extent.length > size - extent.offset) return Code::invalid_argument;
    if (s->slab || extent.length == 0) continue;
    const uint64_t last = (extent.offset + extent.length - 1) / kPageBytes;
    for (uint64_t page = extent.offset / kPageBytes; page <= last; ++page)
      if (!s->remote->is_present(page)) out.push_back({s, page});
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return Code::ok;
}

std::vector<PageRef> BaseSet::Impl::claim(const std::vector<PageRef>& absent) {
  std::vector<PageRef> claimed;
  for (const PageRef& ref : absent) {
    if (ref.slot->remote->is_loading(ref.page) || ref.slot->remote->is_present(ref.page)) continue;
    ref.slot->remote->set_loading(ref.page, true);
    claimed.push_back(ref);
  }
  if (!claimed.empty()) ++loads_in_flight;
  return claimed;
}

// Those that have arrived become present.
Code BaseSet::Load::Parts::collect(Clock::time_point deadline) {
  Code result = Code::ok;
  for (SubmittedBatch& submitted : batches) {
    if (!submitted.batch->wait(deadline - Clock::now())) {
      if (result == Code::ok) result = Code::deadline_exceeded;
      submitted.batch.reset();  // waits until nothing writes into the pages any more
      continue;
    }
    for (size_t i = 0; i < submitted.count; ++i) {
      const Code status = submitted.batch->status(i);
      if (status != Code::ok) {
        if (result == Code::ok) result = status;
        continue;
      }
      const ReadRequest& request = submitted.peer->requests[submitted.first + i];
      const PageRef first = submitted.peer->first_pages[submitted.first + i];
      for (uint64_t p = 0; p < request.length / kPageBytes; ++p)
        first.slot->remote->set_present(first.page + p);
      impl.bytes_read[static_cast<size_t>(submitted.batch->carried_by(i))] += request.length;
    }
  }
  return result;
}

void BaseSet::Impl::release(const std::vector<PageRef>& claimed) {
  {
    std::lock_guard lock(load_mutex);
    for (const PageRef& ref : claimed) ref.slot->remote->set_loading(ref.page, false);
    --loads_in_flight;
  }
  load_done.notify_all();
}

BaseSet::BaseSet() : impl_(std::make_unique<Impl>()) {}
BaseSet::~BaseSet() = default;

uint32_t BaseSet::add_local(std::shared_ptr<Slab> slab) {
  if (!slab) throw Error(Code::invalid_argument, "no slab");
  auto slot = std::make_unique<Slot>();
  slot->base_id = slab->base_id();
  slot->space = slab->space();
  slot->slab = std::move(slab);
  return impl_->add(std::move(slot));
}

uint32_t BaseSet::add_remote(uint64_t base_id, uint64_t page_count, AddressSpace space,
                             std::shared_ptr<PageReader> reader) {
  if (!reader) throw Error(Code::invalid_argument, "no page reader");
  if (page_count == 0 || page_count > kMaxBasePages)
    throw Error(Code::limit_exceeded, "base page count", "base " + std::to_string(base_id));
  if (space.ranges.size() > kMaxRanges)
    throw Error(Code::limit_exceeded, "base address ranges", "base " + std::to_string(base_id));
  auto slot = std::make_unique<Slot>();
  slot->base_id = base_id;
  slot->space = std::move(space);
  slot->remote = std::make_unique<RemoteBase>(page_count, std::move(reader));
  return impl_->add(std::move(slot));
}

size_t BaseSet::size() const {
  std::shared_lock lock(impl_->slots_mutex);
  return impl_->slots.size();
}

BaseView BaseSet::view(uint32_t slot) const { return impl_->slot_or_throw(slot).view(); }

bool BaseSet::local(uint32_t slot) const { return impl_->slot_or_throw(slot).slab != nullptr; }

std::vector<BaseView> BaseSet::views() const {
  std::shared_lock lock(impl_->slots_mutex);
  std::vector<BaseView> out;
  for (const auto& slot : impl_->slots) out.push_back(slot->view());
  return out;
}

uint32_t BaseSet::slot_of(uint64_t base_id) const {
  std::shared_lock lock(impl_->slots_mutex);
  for (size_t i = 0; i < impl_->slots.size(); ++i)
    if (impl_->slots[i]->base_id == base_id) return static_cast<uint32_t>(i);
  throw Error(Code::not_found, "base is not in the set", "base " + std::to_string(base_id));
}

std::vector<BaseView> BaseSet::views_for(std::span<const uint64_t> base_ids) const {
  std::vector<BaseView> out;
  for (uint64_t id : base_ids) out.push_back(view(slot_of(id)));
  return out;
}

Code BaseSet::ensure(std::span<const Extent> extents, std::chrono::nanoseconds timeout) {
  const auto deadline = Clock::now() + std::min<std::chrono::nanoseconds>(timeout, std::chrono::hours(24));
  std::vector<PageRef> absent, claimed;
  for (;;) {
    if (Code code = impl_->absent_pages(extents, absent); code != Code::ok) return code;
    if (absent.empty()) return Code::ok;
    {
      std::unique_lock lock(impl_->load_mutex);
      claimed = impl_->claim(absent);
      if (claimed.empty()) {
        // All that is missing is being read by other threads; if their reads fail, we try ourselves.
        const bool done = impl_->load_done.wait_until(lock, deadline, [&] {
          return std::none_of(absent.begin(), absent.end(),
                              [](const PageRef& ref) { return ref.slot->remote->is_loading(ref.page); });
        });
        if (!done) return Code::deadline_exceeded;
        continue;
      }
    }
    Load::Parts load(*impl_, std::move(claimed));
    load.submit();
    if (Code code = load.collect(deadline); code != Code::ok) return code;
  }
}

std::unique_ptr<BaseSet::Load> BaseSet::begin(std::span<const Extent> extents, bool& others) {
  std::vector<PageRef> absent, claimed;
  if (Code code = impl_->absent_pages(extents, absent); code != Code::ok)
    throw Error(code, "extent outside its base");
  {
    const std::lock_guard lock(impl_->load_mutex);
    claimed = impl_->claim(absent);
  }
  others = claimed.size() < absent.size();
  if (claimed.empty()) return nullptr;
  auto parts = std::make_unique<Load::Parts>(*impl_, std::move(claimed));
  parts->submit();
  return std::unique_ptr<Load>(new Load(std::move(parts)));
}

BaseSet::Load::Load(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
BaseSet::Load::~Load() = default;

Code BaseSet::Load::finish(std::chrono::nanoseconds timeout) {
  if (!parts_) return Code::ok;
  const auto parts = std::move(parts_);
  return parts->collect(Clock::now() + std::min<std::chrono::nanoseconds>(timeout, std::chrono::hours(24)));
}

void BaseSet::keep_in(std::shared_ptr<KeptPages> pages, std::string domain) {
  impl_->kept = std::move(pages);
  impl_->domain = std::move(domain);
}

std::shared_ptr<const KeptBase> BaseSet::kept(uint32_t slot) const {
  const Slot& found = impl_->slot_or_throw(slot);
  if (!impl_->kept || !found.remote) return nullptr;
  return impl_->kept->find(impl_->domain, found.base_id, found.remote->page_count);
}

void BaseSet::count_kept_used(uint64_t pages) const {
  if (impl_->kept) impl_->kept->count_used(pages);
}

void BaseSet::drop_kept() {
  if (!impl_->kept) return;
  const std::shared_lock lock(impl_->slots_mutex);
  for (const auto& slot : impl_->slots) impl_->kept->drop(impl_->domain, slot->base_id);
}

void BaseSet::want(std::span<const Extent> extents) {
  if (!impl_->kept) return;
  for (const Extent& extent : extents) {
    Slot* slot = impl_->slot(extent.base_slot);
    if (!slot || !slot->remote || extent.length == 0) continue;
    RemoteBase& remote = *slot->remote;
    const uint64_t last = (extent.offset + extent.length - 1) / kPageBytes;
    for (uint64_t page = extent.offset / kPageBytes; page <= last && page < remote.page_count; ++page)
      remote.wanted[page / 64].fetch_or(1ull << (page % 64), std::memory_order_relaxed);
  }
}

void BaseSet::keep_wanted() {
  if (!impl_->kept) return;
  const std::shared_lock lock(impl_->slots_mutex);
  for (const auto& slot : impl_->slots) {
    if (!slot->remote) continue;
    RemoteBase& remote = *slot->remote;
    std::vector<KeptPages::Page> pages;
    for (size_t word = 0; word < remote.wanted.size(); ++word) {
      const uint64_t come = remote.wanted[word] & remote.present[word].load(std::memory_order_acquire);
      for (uint64_t left = come; left != 0; left &= left - 1) {
        const uint64_t page = word * 64 + static_cast<uint64_t>(std::countr_zero(left));
        pages.push_back({page, remote.memory + page * kPageBytes});
      }
      remote.wanted[word].fetch_and(~come);
    }
    impl_->kept->add(impl_->domain, slot->base_id, remote.page_count, pages);
  }
}

void BaseSet::drop_remote() {
  std::unique_lock lock(impl_->load_mutex);
  impl_->load_done.wait(lock, [&] { return impl_->loads_in_flight == 0; });
  std::shared_lock slots_lock(impl_->slots_mutex);
  for (const auto& slot : impl_->slots) {
    if (!slot->remote) continue;
    for (auto& word : slot->remote->present) word.store(0, std::memory_order_release);
    madvise(slot->remote->memory, slot->remote->page_count * kPageBytes, MADV_DONTNEED);
  }
}

uint64_t BaseSet::remote_read_bytes() const {
  const BytesByTransport bytes = remote_bytes_by_transport();
  return std::accumulate(bytes.begin(), bytes.end(), uint64_t{0});
}

uint64_t BaseSet::remote_pages_read() const { return remote_read_bytes() / kPageBytes; }

BytesByTransport BaseSet::remote_bytes_by_transport() const {
  BytesByTransport out{};
  for (size_t i = 0; i < kTransports; ++i) out[i] = impl_->bytes_read[i];
  return out;
}

}  // namespace medes
