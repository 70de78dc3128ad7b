#include "bases/base_set.h"
#include "bindings/bindings.h"
#include "codec/window_plan.h"
#include "common/error.h"
#include "dedup/encoder.h"
#include "dedup/reuse.h"
#include "dedup/survey.h"
#include "restore/working_set.h"
#include "store/sandbox_file.h"
#include "store/seal.h"

namespace medes::bindings {

std::vector<BaseView> fetch_bases(const EncodedImage& image, uint64_t first, uint64_t count, BaseSet& bases) {
  std::vector<BaseView> views = bases.views_for(image.base_ids());
  std::vector<Extent> extents;
  image.extents(first, count, extents);
  for (Extent& e : extents) e.base_slot = bases.slot_of(image.base_ids()[e.base_slot]);
  const Code code = bases.ensure(extents, std::chrono::seconds(30));
  if (code != Code::ok) throw Error(code, "base pages could not be read");
  return views;
}

nb::dict stats_dict(const EncodedStats& stats) {
  nb::dict out;
  for (size_t i = 0; i < kPageKinds; ++i)
    out[(std::string("pages_") + kPageKindNames[i]).c_str()] = stats.pages[i];
  out["patch_bytes"] = stats.patch_bytes;
  out["table_bytes"] = stats.table_bytes;
  out["windows"] = stats.windows;
  return out;
}

namespace {

using Encoded = EncodedBlob;

nb::bytes decode_page(const Encoded& self, uint64_t page, BaseSet& bases) {
  std::vector<std::byte> out(kPageBytes);
  Code code;
  {
    nb::gil_scoped_release release;
    const std::vector<BaseView> views = fetch_bases(self.image, page, 1, bases);
    code = self.image.decode(page, views, out.data(), *EncodedImage::make_scratch());
  }
  if (code != Code::ok) throw Error(code, "page cannot be rebuilt", "page " + std::to_string(page));
  return to_bytes(out);
}

std::shared_ptr<Encoded> encode(std::shared_ptr<MemoryImage> image, const WindowPlan& plan, BaseSet& bases,
                                const std::string& codec, std::optional<size_t> group_pages,
                                const CancelFlag* cancel, const std::string& simd, const Reuse* reuse,
                                const nb::bytes& wanted_first, const std::string& folder) {
  if (codec != "windowed") throw Error(Code::invalid_argument, "unknown codec", codec, "use windowed");
  EncodeOptions options;
  options.cancel = cancel;
  options.reuse = reuse;
  options.simd = parse_simd(simd);
  if (group_pages) {
    options.compress_groups = *group_pages > 0;
    if (*group_pages > 0) options.group_pages = *group_pages;
  }
  const auto wanted = unpack_working_set(as_bytes(wanted_first));
  nb::gil_scoped_release release;
  const auto key = folder.empty() ? std::nullopt : store_key_of(folder + "/");
  if (key) options.key = &*key;
  if (!wanted.empty()) options.wanted_first = RegionIndex(image->layout()).pages_of(wanted);
  return std::const_pointer_cast<Encoded>(encode_image(*image, plan, bases, options));
}

// The Reuse refers to the layouts of image and previous file: they live as long as it.
struct SurveyedReuse {
  std::shared_ptr<MemoryImage> image;
  std::shared_ptr<SandboxFile> previous;
  std::unique_ptr<Reuse> reuse;
};

nb::tuple survey(std::shared_ptr<MemoryImage> image, uint32_t samples_per_page, const FingerprintIndex& index,
                 std::shared_ptr<SandboxFile> previous, const CancelFlag* cancel) {
  EarlierImage earlier;
  if (previous != nullptr)
    earlier = {&previous->layout(), std::shared_ptr<const EncodedImage>(previous, &previous->encoded())};
  Survey found = [&] {
    nb::gil_scoped_release release;
    return survey_image(*image, samples_per_page, index, earlier, cancel);
  }();
  std::shared_ptr<Reuse> reuse;
  if (found.reuse != nullptr) {
    auto kept = std::make_shared<SurveyedReuse>(image, previous, std::move(found.reuse));
    reuse = std::shared_ptr<Reuse>(kept, kept->reuse.get());
  }
  return nb::make_tuple(std::move(found.fingerprints), std::move(found.locations), std::move(reuse));
}

void register_plan(nb::module_& m) {
  nb::class_<WindowPlan>(m, "WindowPlan")
      .def_prop_ro("base_ids", &WindowPlan::base_ids)
      .def_prop_ro("page_count", &WindowPlan::page_count)
      .def_prop_ro("covered_pages", &WindowPlan::covered_pages)
      .def("uncovered_pages", &WindowPlan::uncovered_pages, nb::arg("samples_min") = 4);
  m.def(
      "plan_windows",
      [](std::shared_ptr<MemoryImage> image, const Fingerprints& fingerprints, const Locations& locations) {
        nb::gil_scoped_release release;
        return plan_windows(image->page_count(), fingerprints, locations);
      },
      nb::arg("image"), nb::arg("fingerprints"), nb::arg("locations"));
}

void register_encoded(nb::module_& m) {
  nb::list kinds;
  for (const char* name : kPageKindNames) kinds.append(name);
  m.attr("PAGE_KINDS") = nb::tuple(kinds);
  nb::class_<Encoded>(m, "EncodedImage")
      .def_static(
          "from_bytes",
          [](const nb::bytes& blob, const std::string& folder) {
            const auto key = folder.empty() ? std::nullopt : store_key_of(folder + "/");
            auto out = std::make_shared<Encoded>();
            const Bytes bytes = as_bytes(blob);
            out->bytes.assign(bytes.begin(), bytes.end());
            out->image = EncodedImage::open(out->bytes, key ? &*key : nullptr);
            return out;
          },
          nb::arg("blob"), nb::arg("folder") = "")
      .def_prop_ro("stats", [](const Encoded& self) { return stats_dict(self.image.stats()); })
      .def_prop_ro("page_count", [](const Encoded& self) { return self.image.page_count(); })
      .def_prop_ro("group_pages", [](const Encoded& self) { return self.image.group_pages(); })
      .def_prop_ro("slides",
                   [](const Encoded& self) {
                     std::vector<std::pair<size_t, size_t>> out;
                     for (uint32_t slot = 0; slot < self.image.base_ids().size(); ++slot) {
                       const auto counts = self.image.slide_counts(slot);
                       out.emplace_back(counts[0], counts[1]);
                     }
                     return out;
                   })
      .def("page_kinds",
           [](const Encoded& self) {
             std::vector<std::byte> kinds(self.image.page_count());
             for (uint64_t page = 0; page < kinds.size(); ++page) {
               kinds[page] = static_cast<std::byte>(self.image.kind(page));
             }
             return to_bytes(kinds);
           })
      .def_prop_ro("base_ids",
                   [](const Encoded& self) {
                     const auto ids = self.image.base_ids();
                     return std::vector<uint64_t>(ids.begin(), ids.end());
                   })
      .def_prop_ro("blob_bytes", [](const Encoded& self) { return self.bytes.size(); })
      .def("to_bytes", [](const Encoded& self) { return to_bytes(self.bytes); })
      .def("decode", &decode_page, nb::arg("page"), nb::arg("bases"))
      .def(
          "check",
          [](const Encoded& self, BaseSet& bases) {
            nb::gil_scoped_release release;
            check_image(self.image, fetch_bases(self.image, 0, self.image.page_count(), bases));
          },
          nb::arg("bases"))
      .def(
          "verify",
          [](const Encoded& self, std::shared_ptr<MemoryImage> image, BaseSet& bases) {
            nb::gil_scoped_release release;
            verify_image(self.image, *image, fetch_bases(self.image, 0, self.image.page_count(), bases));
          },
          nb::arg("image"), nb::arg("bases"));
}

void register_survey(nb::module_& m) {
  nb::class_<Reuse>(m, "Reuse")
      .def_prop_ro("pages", &Reuse::reused)
      .def(
          "plan",
          [](const Reuse& self, const WindowPlan& plan) {
            nb::gil_scoped_release release;
            return plan_with_reuse(plan, self);
          },
          nb::arg("plan"));
  m.def("survey", &survey, nb::arg("image"), nb::arg("samples_per_page"), nb::arg("index"),
        nb::arg("previous").none() = nb::none(), nb::arg("cancel").none() = nb::none());
}

}  // namespace

void register_dedup(nb::module_& m) {
  nb::class_<CancelFlag>(m, "CancelFlag")
      .def(nb::init<>())
      .def("cancel", [](CancelFlag& self) { self.cancelled = true; })
      .def_prop_ro("cancelled", [](const CancelFlag& self) { return self.cancelled.load(); })
      .def("abandon", [](CancelFlag& self) { self.abandoned = true; });
  register_plan(m);
  register_encoded(m);
  register_survey(m);
  m.def("encode", &encode, nb::arg("image"), nb::arg("plan"), nb::arg("bases"), nb::arg("codec") = "windowed",
        nb::arg("group_pages") = nb::none(), nb::arg("cancel").none() = nb::none(), nb::arg("simd") = "best",
        nb::arg("reuse").none() = nb::none(), nb::arg("wanted_first") = nb::bytes("", 0),
        nb::arg("folder") = "");
}

}  // namespace medes::bindings
