#include "dedup/encoder.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "codec/group_verifier.h"
#include "codec/page_encoder.h"
#include "codec/varint.h"
#include "common/checksum.h"
#include "common/error.h"
#include "common/thread_pool.h"
#include "common/wiped.h"
#include "dedup/learn.h"
#include "dedup/reuse.h"
#include "dedup/window_fetcher.h"

namespace medes {

void check_cancelled(const CancelFlag* cancel) {
  if (cancel != nullptr && cancel->cancelled.load(std::memory_order_relaxed)) {
    throw Error(Code::cancelled, "the sandbox became active during the dedup op");
  }
}

namespace {

constexpr size_t kGroupsPerTask = 16;
// Unpacking a group takes as long as decoding about four of its pages; compression saves a fifth of a patch.
constexpr size_t kLoosePagesMost = 8;

// What encoding a group hands to the assembly.
struct GroupOutput {
  WipedBytes payload;  // packed part as stored, direct part, padding
  std::vector<std::byte> windows;
  blob::Group index;  // its two offsets are the assembly's
  uint64_t window_count = 0;
  uint64_t digest = 0;  // of what was verified

  Bytes stored() const { return Bytes(payload).first(payload.size() - kPayloadPadding); }
};

// The place that most of the group's first candidates agree on, so that their references take one byte.
uint64_t choose_reference(const WindowPlan& plan, uint64_t first, size_t count,
                          std::span<const BaseView> views) {
  uint64_t places[kMaxGroupPages];
  size_t n = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t w = plan.windows(first + i)[0];
    if (window_fits(w, views) && window_unit(w) >= i * kUnitsPerPage) places[n++] = w - i * kUnitsPerPage;
  }
  std::sort(places, places + n);
  uint64_t best = 0;
  size_t best_run = 0;
  for (size_t i = 0; i < n;) {
    size_t j = i;
    while (j < n && places[j] == places[i]) ++j;
    if (j - i > best_run) {
      best_run = j - i;
      best = places[i];
    }
    i = j;
  }
  return best;
}

void put_windows(std::vector<std::byte>& out, const EncodedPage& page, uint64_t reference, size_t index) {
  for (size_t i = 0; i < page.window_count; ++i) {
    const uint64_t w = page.windows[i];
    const uint64_t more = i + 1 < page.window_count;
    if (window_slot(w) == window_slot(reference)) {
      const auto expected = static_cast<int64_t>(window_unit(reference) + index * kUnitsPerPage);
      const int64_t delta = static_cast<int64_t>(window_unit(w)) - expected;
      put_varint(out, blob::zigzag(delta) << 2 | more);
    } else {
      put_varint(out, uint64_t{window_slot(w)} << 2 | 2 | more);
      put_varint(out, window_unit(w));
    }
  }
}

class BlobEncoder {
 public:
  BlobEncoder(const MemoryImage& image, const WindowPlan& plan, std::span<const BaseView> views,
              const EncodeOptions& options)
      : image_(image), plan_(plan), views_(views), options_(options) {}

  WipedBytes run() {
    if (options_.key != nullptr) {
      nonce_ = random_tag_nonce();
      tags_ = std::make_shared<const PageTags>(*options_.key, nonce_);
    }
    tables_ = learn_slides(image_, plan_, views_, options_.reuse);
    for (size_t i = 0; i < views_.size(); ++i) bases_.push_back({views_[i].bytes, tables_[i].predictor()});
    dictionary_ = options_.reuse != nullptr ? options_.reuse->encoded().dictionary()
                                            : learn_dictionary(image_, plan_, views_, bases_, options_.simd);
    base_section_ = make_base_section();
    const uint64_t pages = image_.page_count();
    page_checks_.resize(pages);
    entries_.resize(pages);
    groups_.resize((pages + options_.group_pages - 1) / options_.group_pages);
    choose_loose();
    ThreadPool::shared().parallel_for(groups_.size(), kGroupsPerTask,
                                      [&](size_t begin, size_t end) { encode_groups(begin, end); });
    WipedBytes blob = assemble();
    check_assembled(blob);
    return blob;
  }

 private:
  uint64_t first_page(uint64_t g) const { return g * options_.group_pages; }
  size_t pages_in(uint64_t g) const {
    return static_cast<size_t>(std::min<uint64_t>(options_.group_pages, image_.page_count() - first_page(g)));
  }

  uint64_t check_of(uint64_t page, const std::byte* bytes) const {
    return tags_ != nullptr ? tags_->tag(page, bytes) : checksum64({bytes, kPageBytes});
  }

  void choose_loose() {
    loose_.resize(image_.page_count());
    if (!options_.compress_groups) return;
    for (uint64_t page : options_.wanted_first)
      if (page < loose_.size()) loose_[page] = 1;
    for (uint64_t g = 0; g < groups_.size(); ++g) {
      const auto group = std::span(loose_).subspan(first_page(g), pages_in(g));
      if (std::accumulate(group.begin(), group.end(), size_t{0}) > kLoosePagesMost)
        std::fill(group.begin(), group.end(), uint8_t{0});
    }
  }

  // Reads a few groups at a time, which are then encoded and verified from the cache.
  void encode_groups(size_t begin, size_t end) {
    PageEncoder encoder(bases_, dictionary_, options_.simd);
    GroupVerifier verifier(base_section_, static_cast<uint32_t>(views_.size()), dictionary_bytes(), views_,
                           tags_);
    static thread_local ThreadScratch<EncodedImage::DecodeScratch> thread_scratch;
    const EncodedImage::DecodeScratch& scratch = thread_scratch.use();
    WipedBytes packed, direct;
    static thread_local ThreadScratch<PageBuffer> thread_buffer(
        std::max<uint64_t>(MemoryImage::kReadPages, kMaxGroupPages));
    const PageBuffer& buffer = thread_buffer.use();
    const size_t together = std::max<size_t>(1, MemoryImage::kReadPages / options_.group_pages);
    for (size_t at = begin; at < end; at += together) {
      check_cancelled(options_.cancel);
      const size_t stop = std::min(end, at + together);
      const uint64_t first = first_page(at), count = first_page(stop - 1) + pages_in(stop - 1) - first;
      if (options_.before_pages) options_.before_pages(first, count);
      const std::byte* const bytes = image_.read(first, count, buffer.data());
      for (uint64_t i = 0; i < count; ++i) {
        page_checks_[first + i] = check_of(first + i, bytes + i * kPageBytes);
        image_.note_encoded(first + i, bytes + i * kPageBytes);
      }
      for (size_t g = at; g < stop; ++g) {
        const std::byte* const pages = bytes + (first_page(g) - first) * kPageBytes;
        if (!take_over_group(g, pages, *scratch))
          encode_group(g, pages, bytes + count * kPageBytes, encoder, *scratch, packed, direct);
        verify_group(g, pages, verifier);
      }
    }
  }

  EncodedPage encode_page(uint64_t page, const std::byte* bytes, PageEncoder& encoder,
                          EncodedImage::Scratch& scratch, Bytes& payload) {
    if (options_.reuse == nullptr || !options_.reuse->still_same(page, bytes)) {
      EncodedPage e = encoder.encode(as_words(bytes), plan_.windows(page));
      payload = {encoder.payload(), e.length};
      e.kind = placed(page, e.kind);
      return e;
    }
    StoredPage stored;
    if (!options_.reuse->encoded().stored_page(options_.reuse->old_page(page), scratch, stored))
      throw Error(Code::corrupt, "a page cannot be taken over", "page " + std::to_string(page));
    payload = stored.payload;
    EncodedPage e;
    e.kind = placed(page, stored.kind);
    e.length = payload.size();
    e.window_count = stored.windows.size();
    std::copy(stored.windows.begin(), stored.windows.end(), e.windows);
    return e;
  }

  // A patch is the same in either part of its group.
  EntryKind placed(uint64_t page, EntryKind kind) const {
    if (kind == EntryKind::patch && loose_[page]) return EntryKind::loose;
    return kind == EntryKind::loose && !loose_[page] ? EntryKind::patch : kind;
  }

  // A group all of whose pages were one group before is stored as it was, compressed bytes and all; unless a
  // page of it is wanted sooner now.
  bool take_over_group(uint64_t g, const std::byte* pages, EncodedImage::Scratch& scratch) {
    const uint64_t first = first_page(g);
    const size_t count = pages_in(g);
    if (!is_taken_over(options_.reuse, first)) return false;
    const EncodedImage& before = options_.reuse->encoded();
    const uint64_t old = options_.reuse->old_page(first);
    if (before.group_pages() != options_.group_pages || old % options_.group_pages != 0) return false;
    for (size_t i = 0; i < count; ++i) {
      StoredPage page;
      if (options_.reuse->old_page(first + i) != old + i ||
          !options_.reuse->still_same(first + i, pages + i * kPageBytes) ||
          (loose_[first + i] &&
           (!before.stored_windows(old + i, scratch, page) || page.kind == EntryKind::patch)))
        return false;
    }
    StoredGroup stored;
    if (!before.stored_group(old / options_.group_pages, scratch, stored) || stored.pages != count ||
        (!options_.compress_groups && stored.packed_bytes != stored.unpacked_bytes))
      return false;
    GroupOutput& out = groups_[g];
    out.index.reference = stored.reference;
    out.index.packed_bytes = stored.packed_bytes;
    out.index.unpacked_bytes = stored.unpacked_bytes;
    out.index.direct_bytes = stored.direct_bytes;
    out.payload.assign(stored.payload.begin(), stored.payload.end());
    out.payload.resize(stored.payload.size() + kPayloadPadding);
    for (size_t i = 0; i < count; ++i) {
      StoredPage page;
      if (!before.stored_windows(old + i, scratch, page))
        throw Error(Code::corrupt, "a page cannot be taken over", "page " + std::to_string(first + i));
      EncodedPage e;
      e.window_count = page.windows.size();
      std::copy(page.windows.begin(), page.windows.end(), e.windows);
      entries_[first + i] = blob::pack_entry(page.kind, page.length);
      if (e.window_count != 0) put_windows(out.windows, e, out.index.reference, i);
      out.window_count += e.window_count;
    }
    return true;
  }

  // What was read ends at `end`. `packed` and `direct` are buffers kept from group to group.
  void encode_group(uint64_t g, const std::byte* pages, const std::byte* end, PageEncoder& encoder,
                    EncodedImage::Scratch& scratch, WipedBytes& packed, WipedBytes& direct) {
    GroupOutput& out = groups_[g];
    const uint64_t first = first_page(g);
    const size_t count = pages_in(g);
    out.index.reference = choose_reference(plan_, first, count, views_);
    packed.clear();
    direct.clear();
    for (size_t i = 0; i < count; ++i) {
      const uint64_t page = first + i;
      const std::byte* const bytes = pages + i * kPageBytes;
      // The windows lie anywhere: no hardware prefetcher finds them.
      if (bytes + kPageBytes < end && !is_taken_over(options_.reuse, page + 1))
        encoder.prefetch(as_words(bytes + kPageBytes), plan_.windows(page + 1));
      Bytes payload;
      const EncodedPage e = encode_page(page, bytes, encoder, scratch, payload);
      entries_[page] = blob::pack_entry(e.kind, e.length);
      put_windows(out.windows, e, out.index.reference, i);
      out.window_count += e.window_count;
      auto& part = in_packed(static_cast<unsigned>(e.kind)) ? packed : direct;
      part.insert(part.end(), payload.begin(), payload.end());
    }
    out.index.unpacked_bytes = static_cast<uint32_t>(packed.size());
    out.index.direct_bytes = static_cast<uint32_t>(direct.size());
    out.payload.resize(packed.size() + direct.size() + kPayloadPadding);
    size_t stored = 0;
    if (options_.compress_groups && !packed.empty()) {
      // One byte less than unpacked: equal length means "stored as it is".
      stored = encoder.compress(packed, MutableBytes(out.payload).first(packed.size() - 1));
    }
    if (stored == 0) {
      stored = packed.size();
      std::copy(packed.begin(), packed.end(), out.payload.begin());
    }
    out.index.packed_bytes = static_cast<uint32_t>(stored);
    std::copy(direct.begin(), direct.end(), out.payload.begin() + static_cast<ptrdiff_t>(stored));
    out.payload.resize(stored + direct.size() + kPayloadPadding);
  }

  GroupBytes bytes_of(uint64_t g) const {
    const GroupOutput& out = groups_[g];
    const uint64_t first = first_page(g);
    const size_t count = pages_in(g);
    return {&out.index, std::span(entries_).subspan(first, count),
            std::span(page_checks_).subspan(first, count), out.windows, out.stored()};
  }

  void verify_group(uint64_t g, const std::byte* pages, GroupVerifier& verifier) {
    const GroupBytes group = bytes_of(g);
    const size_t wrong = verifier.first_wrong(group, first_page(g), pages);
    if (wrong != group.entries.size()) {
      throw Error(Code::internal, "a page does not decode to what was encoded",
                  "page " + std::to_string(first_page(g) + wrong));
    }
    groups_[g].digest = group_digest(group);
  }

  // The blob, read as a restore will read it, consists of the bytes that were verified.
  void check_assembled(const WipedBytes& blob) const {
    const EncodedImage image = EncodedImage::open(blob, options_.key);
    for (uint64_t g = 0; g < groups_.size(); ++g) {
      if (image.group_digest(g) != groups_[g].digest) {
        throw Error(Code::internal, "the blob is not what was verified", "group " + std::to_string(g));
      }
    }
    blob::Header h;
    std::memcpy(&h, blob.data(), sizeof h);
    if (h.bases.checksum != checksum64(base_section_) ||
        h.dictionary.checksum != checksum64(dictionary_bytes())) {
      throw Error(Code::internal, "the blob is not what was verified", "tables");
    }
  }

  // Bases that no page uses in the end stay in the list: slots are the plan's, and each is pinned anyway.
  std::vector<std::byte> make_base_section() const {
    ByteWriter w;
    for (size_t i = 0; i < views_.size(); ++i) {
      w.put(plan_.base_ids()[i]);
      w.put(static_cast<uint32_t>(tables_[i].slides().size()));
      w.put(static_cast<uint32_t>(tables_[i].entries().size()));
      w.put_bytes(std::as_bytes(std::span(tables_[i].slides())));
      w.put_bytes(std::as_bytes(std::span(tables_[i].entries())));
    }
    return std::move(w.buffer());
  }

  // Without the zeros at its end.
  Bytes dictionary_bytes() const {
    size_t n = kDictionaryWords;
    while (n > 0 && dictionary_.words[n - 1] == 0) --n;
    return std::as_bytes(std::span(dictionary_.words, n));
  }

  WipedBytes assemble() const {
    std::vector<blob::Group> index;
    std::vector<std::byte> windows;
    blob::Header h;
    uint64_t payload_bytes = 0;
    for (const GroupOutput& g : groups_) {
      index.push_back(g.index);
      index.back().payload_offset = payload_bytes;
      index.back().windows_offset = static_cast<uint32_t>(windows.size());
      payload_bytes += g.stored().size();
      windows.insert(windows.end(), g.windows.begin(), g.windows.end());
      h.window_count += g.window_count;
    }
    std::memcpy(h.magic, blob::kMagicText, sizeof h.magic);
    h.version = tags_ != nullptr ? blob::kVersion : blob::kVersionUnkeyed;
    if (tags_ != nullptr) {
      h.nonce = nonce_;
      h.key_check = tags_->key_check();
    }
    h.group_pages = static_cast<uint32_t>(options_.group_pages);
    h.page_count = image_.page_count();
    h.base_count = static_cast<uint32_t>(views_.size());

    uint64_t at = blob::header_bytes(h);
    const auto place = [&at](blob::Section& s, uint64_t bytes) {
      s.offset = (at + 7) & ~7ull;
      s.bytes = bytes;
      at = s.offset + bytes;
    };
    place(h.bases, base_section_.size());
    place(h.dictionary, dictionary_bytes().size());
    place(h.page_checks, page_checks_.size() * sizeof(uint64_t));
    place(h.entries, entries_.size() * sizeof(uint16_t));
    place(h.groups, index.size() * sizeof(blob::Group));
    place(h.windows, windows.size());
    place(h.payload, payload_bytes);
    h.blob_bytes = at + blob::kTailPadding;

    WipedBytes blob(h.blob_bytes);
    const auto fill = [&blob](blob::Section& s, Bytes bytes) {
      if (!bytes.empty()) std::memcpy(blob.data() + s.offset, bytes.data(), bytes.size());
      s.checksum = checksum64(bytes);
    };
    fill(h.bases, base_section_);
    fill(h.dictionary, dictionary_bytes());
    fill(h.page_checks, std::as_bytes(std::span(page_checks_)));
    fill(h.entries, std::as_bytes(std::span(entries_)));
    fill(h.groups, std::as_bytes(std::span(index)));
    fill(h.windows, windows);
    std::byte* payload = blob.data() + h.payload.offset;
    for (const GroupOutput& g : groups_) {
      payload = std::copy(g.stored().begin(), g.stored().end(), payload);
    }
    blob::put_header(h, blob.data());
    return blob;
  }

  const MemoryImage& image_;
  const WindowPlan& plan_;
  std::span<const BaseView> views_;
  const EncodeOptions& options_;
  std::vector<SlideTable> tables_;
  std::vector<BaseWords> bases_;
  Dictionary dictionary_;
  TagNonce nonce_;
  std::shared_ptr<const PageTags> tags_;
  std::vector<uint64_t> page_checks_;
  std::vector<uint16_t> entries_;
  std::vector<GroupOutput> groups_;
  std::vector<std::byte> base_section_;
  std::vector<uint8_t> loose_;  // by page
};

}  // namespace

WipedBytes encode_blob(const MemoryImage& image, const WindowPlan& plan, std::span<const BaseView> views,
                       const EncodeOptions& options) {
  const WorkScope scope;
  if (plan.page_count() != image.page_count())
    throw Error(Code::invalid_argument, "plan is of another image");
  if (views.size() != plan.base_ids().size())
    throw Error(Code::invalid_argument, "views are of another plan");
  if (options.group_pages < 1 || options.group_pages > kMaxGroupPages) {
    throw Error(Code::invalid_argument, "group size must be 1 to 64 pages",
                std::to_string(options.group_pages));
  }
  if (options.simd > best_simd()) throw Error(Code::unsupported, "SIMD level", simd_name(options.simd));
  if (options.reuse != nullptr &&
      (options.reuse->page_count() != image.page_count() ||
       options.reuse->encoded().base_ids().size() > views.size() ||
       !std::equal(options.reuse->encoded().base_ids().begin(), options.reuse->encoded().base_ids().end(),
                   plan.base_ids().begin())))
    throw Error(Code::invalid_argument, "the plan was not made for this reuse");
  return BlobEncoder(image, plan, views, options).run();
}

void verify_image(const EncodedImage& encoded, const MemoryImage& image, std::span<const BaseView> views,
                  const CancelFlag* cancel) {
  if (encoded.page_count() != image.page_count())
    throw Error(Code::corrupt, "page counts differ", "encoded image");
  ThreadPool::shared().parallel_for(
      image.page_count(), MemoryImage::kReadPages, [&](size_t begin, size_t end) {
        check_cancelled(cancel);
        static thread_local ThreadScratch<EncodedImage::DecodeScratch> thread_scratch;
        const EncodedImage::DecodeScratch& scratch = thread_scratch.use();
        static thread_local ThreadScratch<PageBuffer> thread_buffer(MemoryImage::kReadPages);
        const PageBuffer& buffer = thread_buffer.use();
        const std::byte* const expected = image.read(begin, end - begin, buffer.data());
        alignas(64) std::byte page[kPageBytes];
        for (size_t i = begin; i < end; ++i) {
          if (encoded.decode(i, views, page, *scratch) != Code::ok ||
              std::memcmp(page, expected + (i - begin) * kPageBytes, kPageBytes) != 0) {
            throw Error(Code::corrupt, "decoded page differs from the image", "page " + std::to_string(i));
          }
        }
      });
}

void check_image(const EncodedImage& encoded, std::span<const BaseView> views) {
  ThreadPool::shared().parallel_for(encoded.page_count(), 512, [&](size_t begin, size_t end) {
    static thread_local ThreadScratch<EncodedImage::DecodeScratch> thread_scratch;
    const EncodedImage::DecodeScratch& scratch = thread_scratch.use();
    alignas(64) std::byte page[kPageBytes];
    for (size_t i = begin; i < end; ++i) {
      const Code code = encoded.decode(i, views, page, *scratch);
      if (code != Code::ok) throw Error(code, "page cannot be rebuilt", "page " + std::to_string(i));
    }
  });
}

std::shared_ptr<const EncodedBlob> encode_image(const MemoryImage& image, const WindowPlan& plan,
                                                BaseSet& bases, const EncodeOptions& options) {
  WindowFetcher fetcher(plan, bases);
  fetcher.fetch(0, plan.page_count(), kLearnStride);
  check_cancelled(options.cancel);
  fetcher.run_ahead();
  EncodeOptions fetching = options;
  fetching.before_pages = [&fetcher](uint64_t first, uint64_t count) { fetcher.fetch(first, count); };
  auto out = std::make_shared<EncodedBlob>();
  out->bytes = encode_blob(image, plan, fetcher.views(), fetching);
  out->image = EncodedImage::open(out->bytes, options.key);
  return out;
}

}  // namespace medes
