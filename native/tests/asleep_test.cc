// A program that works while it is put to sleep, reclaimed and restored: the fault server's threads at every
// instant of each op, for the sanitizers. What the ops do is tried in tests/fault.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <string>
#include <thread>

#include "bases/base_set.h"
#include "common/error.h"
#include "dedup/encoder.h"
#include "dedup/survey.h"
#include "process/fault_server.h"
#include "procfs/capture.h"
#include "temporary_folder.h"

namespace medes {
namespace {

constexpr std::chrono::seconds kPatience{60};
constexpr int kRoundsMost = 30;  // of a machine on which no thread stops in time
// Threads that read and write pages all the time, map memory, move it and give it back.
constexpr const char* kProgram = R"(
import mmap, random, sys, threading, time
pages, page = 768, 4096
arenas = [mmap.mmap(-1, pages * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
for n, arena in enumerate(arenas):
    for i in range(pages):
        arena[i * page:i * page + 8] = (i + n).to_bytes(8, "little")
stop, broken, known = False, [], {}
def read():
    rng = random.Random(1)
    while not stop:
        i = rng.randrange(pages)
        if int.from_bytes(arenas[0][i * page:i * page + 8], "little") != i:
            broken.append(("read", i))
        time.sleep(0.001)
def write():
    rng = random.Random(2)
    while not stop:
        i = rng.randrange(pages)
        if i in known and arenas[1][i * page + 9] != known[i]:
            broken.append(("write", i))
        arenas[1][i * page + 9] = known[i] = rng.randrange(256)
        time.sleep(0.002)
def move():
    while not stop:
        with mmap.mmap(-1, 65536, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as m:
            m.write(b"z" * 65536)
            m.resize(1 << 18)
            m.madvise(mmap.MADV_DONTNEED, 0, page)
            if m[0] != 0 or m[65535] != 122:
                broken.append("move")
        time.sleep(0.005)
threads = [threading.Thread(target=f) for f in (read, write, move)]
for t in threads:
    t.start()
print("ready", flush=True)
sys.stdin.readline()
stop = True
for t in threads:
    t.join()
wrong = [i for n in (0, 1) for i in range(pages)
         if int.from_bytes(arenas[n][i * page:i * page + 8], "little") != i + n]
print(len(broken) + len(wrong), flush=True)
)";

class Program {
 public:
  Program() {
    int in[2], out[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      execlp("python3", "python3", "-c", kProgram, nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_ = in[1], from_ = out[0];
  }
  ~Program() {
    kill(pid_, SIGKILL);
    (void)waitpid(pid_, nullptr, 0);
    close(to_);
    close(from_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  pid_t pid() const { return pid_; }
  void tell(const std::string& line) const {
    EXPECT_EQ(write(to_, line.data(), line.size()), static_cast<ssize_t>(line.size()));
  }
  std::string hear() const {
    std::string line;
    for (char c = 0;;) {
      pollfd p{from_, POLLIN, 0};
      const int ms = static_cast<int>(std::chrono::milliseconds(kPatience).count());
      if (poll(&p, 1, ms) != 1 || read(from_, &c, 1) != 1) return line + " (and no more)";
      if (c == '\n') return line;
      line += c;
    }
  }

 private:
  pid_t pid_ = 0;
  int to_ = -1, from_ = -1;
};

std::shared_ptr<LiveSandbox> put_to_sleep(FaultServer& server, pid_t pid, const std::string& path) {
  const auto image = attach(std::span(&pid, 1));
  const FingerprintIndex none;
  const Survey survey = survey_image(*image, 8, none);
  auto bases = std::make_shared<BaseSet>();
  const WindowPlan plan = plan_windows(image->page_count(), survey.fingerprints, survey.locations);
  const auto encoded = encode_image(*image, plan, *bases, {});
  auto file = SandboxFile::create(path, {}, image->layout(), encoded->bytes);
  EvictOptions options;
  options.wake.touches_per_s_max = 1u << 18;
  return server.evict(*image, std::move(file), std::move(bases), options, nullptr);
}

TEST(Asleep, EveryOpBesideAProgramThatWorks) {
  if (!probe_live().empty()) GTEST_SKIP() << probe_live().front().first;
  const testing::TemporaryFolder folder;
  const Program program;
  ASSERT_EQ(program.hear(), "ready");
  FaultServer server(2);
  uint64_t reclaimed = 0;
  for (int round = 0; round < 3 || (reclaimed == 0 && round < kRoundsMost); ++round) {
    const auto path = folder.path() / ("sandbox-" + std::to_string(round) + ".medes");
    std::shared_ptr<LiveSandbox> live;
    for (int tries = 0; !live && tries < 50; ++tries) {
      try {
        std::filesystem::remove(path);
        live = put_to_sleep(server, program.pid(), path);
      } catch (const Error& e) {
        ASSERT_EQ(e.code, Code::busy) << e.what();  // a thread was where it cannot be stopped
      }
    }
    ASSERT_TRUE(live);
    for (int n = 0; n < 10 && live->state() == LiveState::dormant; ++n) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      try {
        reclaimed += live->reclaim({}).reclaimed_pages;
      } catch (const Error& e) {
        ASSERT_EQ(e.code, Code::busy) << e.what();
      }
    }
    std::thread reclaim([&] {
      try {
        (void)live->reclaim({});
      } catch (const Error&) {
        // It wakes meanwhile.
      }
    });
    live->restore({});
    EXPECT_TRUE(live->wait_complete(kPatience));
    reclaim.join();
  }
  EXPECT_GT(reclaimed, 0u);
  program.tell("end\n");
  EXPECT_EQ(program.hear(), "0");
  server.close();
}

}  // namespace
}  // namespace medes
