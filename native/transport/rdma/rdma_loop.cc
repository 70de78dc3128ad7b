#include "transport/rdma/rdma_loop.h"

#include <algorithm>
#include <deque>

#include "transport/rdma/rdma_client.h"
#include "transport/rdma/rdma_reader.h"
#include "transport/rdma/rdma_server.h"
#include "transport/socket.h"

namespace medes {

namespace {

using namespace std::chrono_literals;

struct Read {
  uint64_t offset = 0;  // in the slab
  size_t at = 0;        // in the batch's memory
  uint32_t length = 0;
};

std::vector<Read> cut(std::span<const uint64_t> offsets, uint32_t length) {
  std::vector<Read> out;
  size_t at = 0;
  for (uint64_t offset : offsets)
    for (uint32_t done = 0; done < length;) {
      const auto n = static_cast<uint32_t>(std::min<size_t>(length - done, kRdmaChunkBytes));
      out.push_back({offset + done, at, n});
      done += n;
      at += n;
    }
  return out;
}

}  // namespace

LoopTimes time_verbs(std::shared_ptr<Slab> slab, std::span<const uint64_t> offsets, uint32_t length,
                     size_t rounds, size_t depth) {
  check_loop_arguments(*slab, offsets, length, depth);
  auto device = std::make_shared<RdmaDevice>("", 0);
  RdmaServer server(device, 1);
  server.add_slab(slab, "loop");
  const RdmaRegion region = server.region(slab->base_id(), "loop").value();
  const size_t batch_bytes = offsets.size() * length;
  std::vector<std::byte> memory(depth * batch_bytes);
  const PdHandle pd = device->make_pd();
  const MrHandle mr = device->register_memory(pd.get(), memory.data(), memory.size(), IBV_ACCESS_LOCAL_WRITE);
  const CqHandle cq = device->make_cq(kRdmaReadsPosted + 16, nullptr);
  const QpHandle qp = device->make_qp(pd.get(), cq.get(), kRdmaReadsPosted, false);
  const uint32_t psn = random_psn();
  const RdmaEndpoint remote = server.accept(device->endpoint(qp.get(), psn), "loop", "loop").second;
  device->make_responder(qp.get(), remote);
  device->make_initiator(qp.get(), remote, psn);

  const std::vector<Read> batch = cut(offsets, length);
  const size_t total = batch.size() * rounds;
  size_t posted = 0, done = 0;
  std::deque<Clock::time_point> started;
  LoopTimes out;
  const Stopwatch watch;
  const Deadline deadline = Clock::now() + 600s;
  while (done < total) {
    ibv_send_wr list[kRdmaReadsPerPost];
    ibv_sge buffers[kRdmaReadsPerPost];
    size_t count = 0;
    // A list ends with its batch, so that the batch's end is signalled.
    while (posted < total && posted / batch.size() < done / batch.size() + depth &&
           posted - done < kRdmaReadsPosted && count < kRdmaReadsPerPost) {
      const Read& read = batch[posted % batch.size()];
      if (posted % batch.size() == 0) started.push_back(Clock::now());
      std::byte* into = memory.data() + posted / batch.size() % depth * batch_bytes + read.at;
      buffers[count] = {reinterpret_cast<uint64_t>(into), read.length, mr->lkey};
      ibv_send_wr& request = list[count];
      request = {};
      request.wr_id = ++posted;
      request.sg_list = &buffers[count];
      request.num_sge = 1;
      request.opcode = IBV_WR_RDMA_READ;
      request.wr.rdma.remote_addr = region.address + read.offset;
      request.wr.rdma.rkey = region.remote_key;
      if (count > 0) list[count - 1].next = &request;
      ++count;
      if (posted % batch.size() == 0) break;
    }
    if (count > 0) {
      list[count - 1].send_flags = IBV_SEND_SIGNALED;
      ibv_send_wr* bad = nullptr;
      if (ibv_post_send(qp.get(), list, &bad)) throw Error(Code::io, "reference READ cannot be posted");
    }
    ibv_wc completion{};
    const int n = ibv_poll_cq(cq.get(), 1, &completion);
    if (n < 0 || (n > 0 && completion.status != IBV_WC_SUCCESS))
      throw Error(Code::io, "reference READ failed", std::to_string(n < 0 ? n : completion.status));
    if (n > 0) {
      done = completion.wr_id;
      for (; !started.empty() && done / batch.size() > out.latency_us.size(); started.pop_front())
        out.latency_us.push_back(since_us(started.front()));
    } else if (Clock::now() > deadline) {
      throw Error(Code::deadline_exceeded, "reference READs do not end");
    }
  }
  watch.into(out);
  out.bytes = rounds * batch_bytes;
  if (rounds > 0) verify_loop(*slab, offsets, length, memory.data() + (rounds - 1) % depth * batch_bytes);
  return out;
}

}  // namespace medes
