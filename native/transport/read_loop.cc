#include "transport/read_loop.h"

#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <thread>

#include "common/limits.h"
#include "transport/socket.h"

namespace medes {

namespace {

using namespace std::chrono_literals;
constexpr size_t kSocketRequestBytes = 64;

double since_us(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

void check_offsets(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length) {
  for (uint64_t offset : offsets)
    if (offset > slab.bytes().size() || length > slab.bytes().size() - offset)
      throw Error(Code::invalid_argument, "offset outside the slab", slab.path());
}

void verify(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, const std::byte* got) {
  for (size_t i = 0; i < offsets.size(); ++i)
    if (std::memcmp(got + i * length, slab.bytes().data() + offsets[i], length) != 0)
      throw Error(Code::corrupt, "benchmark read the wrong bytes", slab.path());
}

}  // namespace

LoopTimes time_reads(PageReader& reader, const Slab& slab, std::span<const uint64_t> offsets, uint32_t length,
                     size_t rounds, size_t depth) {
  check_offsets(slab, offsets, length);
  struct Flight {
    std::unique_ptr<ReadBatch> batch;
    Clock::time_point begin;
    std::byte* memory;
  };
  const size_t batch_bytes = offsets.size() * length;
  std::vector<std::byte> memory(depth * batch_bytes);
  LoopTimes out;
  std::deque<Flight> flights;
  const auto begin = Clock::now();
  for (size_t round = 0; round < rounds || !flights.empty();) {
    while (round < rounds && flights.size() < depth) {
      std::byte* into = memory.data() + round % depth * batch_bytes;
      std::vector<ReadRequest> reads;
      for (size_t i = 0; i < offsets.size(); ++i)
        reads.push_back({slab.base_id(), offsets[i], length, into + i * length});
      const auto submitted = Clock::now();
      flights.push_back({reader.submit(reads), submitted, into});
      ++round;
    }
    Flight flight = std::move(flights.front());
    flights.pop_front();
    if (!flight.batch->wait(60s)) throw Error(Code::deadline_exceeded, "benchmark batch did not end");
    out.latency_us.push_back(since_us(flight.begin));
    for (size_t i = 0; i < offsets.size(); ++i)
      if (flight.batch->status(i) != Code::ok) throw Error(flight.batch->status(i), "benchmark read failed");
    if (round == rounds && flights.empty()) verify(slab, offsets, length, flight.memory);
    out.bytes += batch_bytes;
  }
  out.wall_s = since_us(begin) / 1e6;
  return out;
}

LoopTimes time_memcpy(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, size_t rounds) {
  check_offsets(slab, offsets, length);
  std::vector<std::byte> memory(offsets.size() * length);
  LoopTimes out;
  const auto begin = Clock::now();
  for (size_t round = 0; round < rounds; ++round) {
    const auto started = Clock::now();
    for (size_t i = 0; i < offsets.size(); ++i)
      std::memcpy(memory.data() + i * length, slab.bytes().data() + offsets[i], length);
    out.latency_us.push_back(since_us(started));
    out.bytes += memory.size();
  }
  out.wall_s = since_us(begin) / 1e6;
  verify(slab, offsets, length, memory.data());
  return out;
}

LoopTimes time_socket(const Slab& slab, uint64_t bytes, size_t rounds, size_t depth) {
  if (bytes == 0 || bytes > slab.bytes().size() || depth == 0)
    throw Error(Code::invalid_argument, "bytes outside the slab", slab.path());
  FileDescriptor listener = listen_on("127.0.0.1", 0);
  const Deadline deadline = Clock::now() + 120s;
  auto client = plain_stream(connect_to(local_address(listener.get()), deadline));
  FileDescriptor accepted(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (accepted.get() < 0) throw Error(Code::io, "accept");
  set_stream_options(accepted.get());
  auto server = plain_stream(std::move(accepted));
  std::thread answering([&] {
    std::byte request[kSocketRequestBytes];
    for (size_t round = 0; round < rounds; ++round) {
      if (!read_all(*server, request, sizeof request, deadline)) return;
      iovec part{const_cast<std::byte*>(slab.bytes().data()), bytes};
      if (!write_all(*server, {&part, 1}, deadline)) return;
    }
  });
  // Replies land in as many buffers as the page reader's do: a single one would stay in the cache.
  std::vector<std::byte> memory(depth * bytes);
  size_t received = 0;
  std::byte request[kSocketRequestBytes] = {};
  std::deque<Clock::time_point> started;
  LoopTimes out;
  bool alive = true;
  const auto begin = Clock::now();
  for (size_t round = 0; alive && (round < rounds || !started.empty());) {
    while (alive && round < rounds && started.size() < depth) {
      iovec part{request, sizeof request};
      started.push_back(Clock::now());
      alive = write_all(*client, {&part, 1}, deadline);
      ++round;
    }
    alive = alive && read_all(*client, memory.data() + received++ % depth * bytes, bytes, deadline);
    out.latency_us.push_back(since_us(started.front()));
    started.pop_front();
    out.bytes += bytes;
  }
  out.wall_s = since_us(begin) / 1e6;
  client->shut_down();
  answering.join();
  if (!alive) throw Error(Code::io, "reference socket failed");
  return out;
}

}  // namespace medes
