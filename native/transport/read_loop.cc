#include "transport/read_loop.h"

#include <sys/socket.h>
#include <time.h>

#include <algorithm>
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
constexpr size_t kSocketWarmBytes = 32 << 20;

}  // namespace

double since_us(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

void Stopwatch::into(LoopTimes& out) const {
  out.wall_s = since_us(begin_) / 1e6;
  out.cpu_s = cpu_s() - cpu_begin_;
}

double Stopwatch::cpu_s() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) / 1e9;
}

void check_loop_arguments(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length,
                          size_t depth) {
  if (offsets.empty() || length == 0 || depth == 0) throw Error(Code::invalid_argument, "nothing to read");
  for (uint64_t offset : offsets)
    if (offset > slab.bytes().size() || length > slab.bytes().size() - offset)
      throw Error(Code::invalid_argument, "offset outside the slab", slab.path());
}

void verify_loop(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, const std::byte* got) {
  for (size_t i = 0; i < offsets.size(); ++i)
    if (std::memcmp(got + i * length, slab.bytes().data() + offsets[i], length) != 0)
      throw Error(Code::corrupt, "benchmark read the wrong bytes", slab.path());
}

LoopTimes time_reads(PageReader& reader, const Slab& slab, std::span<const uint64_t> offsets, uint32_t length,
                     size_t rounds, size_t depth) {
  check_loop_arguments(slab, offsets, length, depth);
  struct Flight {
    std::unique_ptr<ReadBatch> batch;
    Clock::time_point begin;
    std::byte* memory;
  };
  const size_t batch_bytes = offsets.size() * length;
  std::vector<std::byte> memory(depth * batch_bytes);
  const std::byte* last = nullptr;
  LoopTimes out;
  std::deque<Flight> flights;
  const Stopwatch watch;
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
    last = flight.memory;
    out.bytes += batch_bytes;
  }
  watch.into(out);
  if (last) verify_loop(slab, offsets, length, last);
  return out;
}

LoopTimes time_memcpy(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, size_t rounds,
                      size_t depth) {
  check_loop_arguments(slab, offsets, length, depth);
  const size_t batch_bytes = offsets.size() * length;
  std::vector<std::byte> memory(depth * batch_bytes);
  LoopTimes out;
  const Stopwatch watch;
  for (size_t round = 0; round < rounds; ++round) {
    const auto started = Clock::now();
    std::byte* into = memory.data() + round % depth * batch_bytes;
    for (size_t i = 0; i < offsets.size(); ++i)
      std::memcpy(into + i * length, slab.bytes().data() + offsets[i], length);
    out.latency_us.push_back(since_us(started));
    out.bytes += batch_bytes;
  }
  watch.into(out);
  if (rounds > 0) verify_loop(slab, offsets, length, memory.data() + (rounds - 1) % depth * batch_bytes);
  return out;
}

LoopTimes time_socket(const Slab& slab, std::span<const uint64_t> offsets, uint32_t length, size_t rounds,
                      size_t depth) {
  check_loop_arguments(slab, offsets, length, depth);
  const size_t bytes = offsets.size() * length;
  FileDescriptor listener = listen_on("127.0.0.1", 0);
  const Deadline deadline = Clock::now() + 120s;
  auto client = plain_stream(connect_to(local_address(listener.get()), deadline));
  FileDescriptor accepted(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (accepted.get() < 0) throw Error(Code::io, "accept");
  set_stream_options(accepted.get());
  auto server = plain_stream(std::move(accepted));
  // Untimed, so that slow start and the kernel's growing buffers are behind it, as they are for a page
  // reader.
  const size_t warm_rounds = std::max<size_t>(2, kSocketWarmBytes / bytes);
  std::thread answering([&] {
    std::byte request[kSocketRequestBytes];
    std::vector<iovec> parts;
    for (size_t round = 0; round < warm_rounds + rounds; ++round) {
      if (!read_all(*server, request, sizeof request, deadline)) return;
      parts.clear();  // write_all consumes them
      for (uint64_t offset : offsets)
        parts.push_back({const_cast<std::byte*>(slab.bytes().data()) + offset, length});
      if (!write_all(*server, parts, deadline)) return;
    }
  });
  // Replies land in as many buffers as the page reader's do: a single one would stay in the cache.
  std::vector<std::byte> memory(depth * bytes);
  bool alive = true;
  auto run = [&](size_t count) {
    const std::byte nothing[kSocketRequestBytes] = {};
    size_t received = 0;
    std::deque<Clock::time_point> started;
    LoopTimes times;
    const Stopwatch watch;
    for (size_t round = 0; alive && (round < count || !started.empty());) {
      while (alive && round < count && started.size() < depth) {
        iovec part{const_cast<std::byte*>(nothing), sizeof nothing};  // an iovec for sending is only read
        started.push_back(Clock::now());
        alive = write_all(*client, {&part, 1}, deadline);
        ++round;
      }
      alive = alive && read_all(*client, memory.data() + received++ % depth * bytes, bytes, deadline);
      times.latency_us.push_back(since_us(started.front()));
      started.pop_front();
      times.bytes += bytes;
    }
    watch.into(times);
    return times;
  };
  run(warm_rounds);
  const LoopTimes out = run(rounds);
  client->shut_down();
  answering.join();
  if (!alive) throw Error(Code::io, "reference socket failed");
  if (rounds > 0) verify_loop(slab, offsets, length, memory.data() + (rounds - 1) % depth * bytes);
  return out;
}

}  // namespace medes
