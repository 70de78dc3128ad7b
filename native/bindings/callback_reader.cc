#include "bindings/callback_reader.h"

#include <atomic>
#include <cstring>

#include "common/limits.h"

namespace medes::bindings {

namespace {

// Under the GIL.
Code code_of(const nb::python_error& error) {
  const nb::object code = nb::getattr(error.value(), "code", nb::none());
  if (!nb::isinstance<nb::str>(code)) return Code::internal;
  const std::string name = nb::cast<std::string>(code);
  for (uint16_t i = 1; i <= static_cast<uint16_t>(Code::internal); ++i)
    if (name == code_name(static_cast<Code>(i))) return static_cast<Code>(i);
  return Code::internal;
}

// Everything was read at submit.
class CallbackBatch : public ReadBatch {
 public:
  CallbackBatch(std::vector<Code> status, Transport transport)
      : status_(std::move(status)), transport_(transport) {}
  bool wait(std::chrono::nanoseconds) override { return true; }
  Code status(size_t i) const override { return status_[i]; }
  Transport carried_by(size_t) const override { return transport_; }

 private:
  std::vector<Code> status_;
  Transport transport_;
};

class CallbackReader : public PageReader {
 public:
  CallbackReader(const std::string& name, nb::callable read)
      : transport_(transport_named(name)), read_(std::move(read)) {}
  ~CallbackReader() override { CallbackReader::close(); }

  TransportCapabilities capabilities() const override {
    return {transport_, false, false, kMaxReadBytes, kMaxReadsPerBatch};
  }

  std::unique_ptr<ReadBatch> submit(std::span<const ReadRequest> reads) override {
    check_reads(reads);
    std::vector<Code> status;
    uint64_t copied = 0, failed = 0;
    {
      nb::gil_scoped_acquire gil;
      const nb::object read = read_;  // close() may let go of it while the function lets others have the GIL
      for (const ReadRequest& request : reads) {
        status.push_back(read.is_valid() ? ask(read, request) : Code::peer_unreachable);
        if (status.back() == Code::ok)
          copied += request.length;
        else
          ++failed;
      }
    }
    ++batches_;
    reads_ += reads.size();
    bytes_ += copied;
    failures_ += failed;
    return std::make_unique<CallbackBatch>(std::move(status), transport_);
  }

  TransportStats stats() const override {
    TransportStats out;
    out.batches = batches_;
    out.reads = reads_;
    out.bytes = out.by_transport[static_cast<size_t>(transport_)] = bytes_;
    out.failures = failures_;
    return out;
  }

  void close() override {
    if (closed_.exchange(true)) return;
    nb::gil_scoped_acquire gil;
    read_.reset();
  }

 private:
  static Code ask(const nb::object& read, const ReadRequest& request) {
    try {
      const nb::object got = read(request.base_id, request.offset, request.length);
      if (!nb::isinstance<nb::bytes>(got)) return Code::internal;
      const auto bytes = nb::borrow<nb::bytes>(got);
      if (bytes.size() != request.length) return Code::corrupt;
      std::memcpy(request.destination, bytes.c_str(), request.length);
      return Code::ok;
    } catch (const nb::python_error& error) {
      return code_of(error);
    }
  }

  const Transport transport_;
  nb::object read_;  // under the GIL; none once closed
  std::atomic<bool> closed_{false};
  std::atomic<uint64_t> batches_{0}, reads_{0}, bytes_{0}, failures_{0};
};

}  // namespace

std::shared_ptr<PageReader> make_callback_reader(const std::string& name, nb::callable read) {
  return std::make_shared<CallbackReader>(name, std::move(read));
}

}  // namespace medes::bindings
