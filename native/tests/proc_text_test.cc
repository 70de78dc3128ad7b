#include <gtest/gtest.h>

#include "common/error.h"
#include "procfs/proc.h"

namespace medes {
namespace {

TEST(Maps, UnderstandsKernelLines) {
  const auto vmas = parse_maps(
      "55d0a4e00000-55d0a4e21000 rw-p 00000000 00:00 0                          [heap]\n"
      "7f0000000000-7f0000001000 rw-s 00000000 00:01 1045 /memfd:a b (deleted)\n"
      "7f0000002000-7f0000003000 r--p 00001000 fe:10 99                         /usr/lib/x y.so\n"
      "7f0000004000-7f0000005000 rw-p 00000000 00:00 0 \n"
      "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n"
      "7ffc00030000-7ffc00032000 r-xp 00000000 00:00 0                          [vdso]\n");
  ASSERT_EQ(vmas.size(), 6u);
  EXPECT_EQ(vmas[0].kind, VmaKind::heap);
  EXPECT_EQ(vmas[1].kind, VmaKind::memfd);
  EXPECT_EQ(vmas[1].path, "/memfd:a b (deleted)");
  EXPECT_EQ(vmas[2].kind, VmaKind::file_private);
  EXPECT_EQ(vmas[2].offset, 0x1000u);
  EXPECT_EQ(vmas[3].kind, VmaKind::anonymous);
  EXPECT_EQ(vmas[4].kind, VmaKind::stack);
  EXPECT_EQ(vmas[5].kind, VmaKind::other);
}

TEST(Maps, RefusesNonsense) {
  for (const char* text : {"x", "10-5 rw-p 0 00:00 0 \n", "10-20 rw\n", "10-20 rw-p zz 00:00 0\n",
                           "20-30 rw-p 0 00:00 0 \n10-15 rw-p 0 00:00 0 \n"})
    EXPECT_THROW(parse_maps(text), Error) << text;
}

std::string stat_of(const std::string& name, uint64_t arguments_at) {
  std::string text = "7 (" + name + ") S -1 ";
  for (int field = 5; field < 48; ++field) text += std::to_string(field) + " ";
  for (int i = 0; i < 4; ++i) text += std::to_string(arguments_at + 16 * i) + " ";
  return text + "0\n";
}

TEST(ProcText, AStatIsUnderstoodWhateverItsName) {
  for (const char* name : {"x", "", ") R 9 9", "a b\n(", "1 2 3 4 5 6 7 8"}) {
    const ProcessStat stat = parse_stat(stat_of(name, 0x7ffc00000000), "pid 7");
    EXPECT_EQ(stat.state, 'S') << name;
    EXPECT_EQ(stat.parent, -1);
    EXPECT_EQ(stat.user_ticks, 14u);
    EXPECT_EQ(stat.start_time_ticks, 22u);
    EXPECT_EQ(stat.processor, 39);
    EXPECT_EQ(stat.arguments.end, 0x7ffc00000010u);
    EXPECT_EQ(stat.environment.begin, 0x7ffc00000020u);
  }
  const std::string whole = stat_of("x", 1);
  for (size_t n = 0; n < 40; ++n) EXPECT_THROW((void)parse_stat(whole.substr(0, n), "pid 7"), Error);
  EXPECT_THROW((void)parse_stat("7 (x) S 18446744073709551616 " + whole.substr(9), "pid 7"), Error);
}

TEST(ProcText, AThreadsNameIsNoneOfItsTimes) {
  const std::string rest = "\n-----\nse.exec_start   :   12.000345\nnr_voluntary_switches : 9\n";
  for (const char* name : {"cat (1, #threads: 1)", "se.exec_start:9.9", "nr_voluntary_switches : 5"}) {
    const SchedTimes times = parse_sched(name + rest);
    EXPECT_EQ(times.exec_start_ns, 12'000'345) << name;
    EXPECT_EQ(times.voluntary_switches, 9u);
  }
  EXPECT_FALSE(parse_sched("x\nse.exec_start : 9223372036854775807.999999\n").exec_start_ns);
  EXPECT_FALSE(parse_sched("").voluntary_switches);
}

TEST(ProcText, OnlyASleepingCallIsOne) {
  EXPECT_FALSE(parse_syscall("running\n"));
  EXPECT_FALSE(parse_syscall("-1 0x7ffc57efe688 0x7fbb701172ad\n"));
  EXPECT_FALSE(parse_syscall("232 0x1 0x2 0x3 0x4 0x5\n"));
  const auto call = parse_syscall("232 0x1 0x2 0x3 0x4 0x5 0x6 0xffffffffffffffff 0x8\n");
  ASSERT_TRUE(call);
  EXPECT_EQ(call->number, 232);
  EXPECT_EQ(call->arguments[5], 6u);
  EXPECT_EQ(call->stack_pointer, ~uint64_t{0});
}

TEST(ProcText, BuffersOfARingAreWholePagesOfMemory) {
  std::vector<AddressRange> out;
  append_registered_buffers(
      "SqMask:\t7\nUserBufs:\t4\n    0: 0x7f0000001234/4096\n    1: <none>\n"
      "    2: 0xfffffffffffffff0/4096\n    3: 0x1000/0\nPollList:\n    4: 0x1000/1\n",
      out);
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].begin, 0x7f0000001000u);
  EXPECT_EQ(out[0].end, 0x7f0000003000u);
  EXPECT_EQ(pending_of("pos:\t0\nino:\t3\npending:\t17\ntotal:\t9\n"), 17u);
  EXPECT_FALSE(pending_of("pos:\t0\npending:\tmany\n"));
}

TEST(ProcText, FlagsAreOfTheMappingAboveThem) {
  const auto locked = flagged_ranges(
      "1000-2000 rw-p 00000000 00:00 0 \nAnonymous:  4 kB\nVmFlags: rd wr lo\n"
      "2000-3000 rw-p 00000000 00:00 0 /a-b lo\nVmFlags: rd wr\n"
      "3000-5000 rw-p 00000000 00:00 0 /VmFlags: lo\nLocked: 8 kB\nVmFlags: lo rd\n",
      "lo");
  ASSERT_EQ(locked.size(), 2u);
  EXPECT_EQ(locked[0].begin, 0x1000u);
  EXPECT_EQ(locked[1].end, 0x5000u);
}

TEST(ProcText, GroupsAndTheirMounts) {
  const auto groups = parse_cgroups("9:name=systemd:/\n6:freezer,memory:/a:b\nbroken\n0::/c\n");
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[1].controllers, ",freezer,memory,");
  EXPECT_EQ(groups[1].path, "/a:b");
  EXPECT_TRUE(groups[2].unified && groups[2].controllers == ",,");
  const auto mounts = parse_cgroup_mounts(
      "36 35 0:30 / /sys/fs/cgroup rw,noatime shared:1 - cgroup2 none rw,nsdelegate\n"
      "37 35 0:31 /x /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
      "38 35 8:1 / /home rw - ext4 /dev/sda rw\n39 35\n");
  ASSERT_EQ(mounts.size(), 2u);
  EXPECT_TRUE(mounts[0].unified);
  EXPECT_EQ(mounts[1].root, "/x");
  EXPECT_EQ(mounts[1].controllers, ",rw,freezer,");
  EXPECT_EQ(memory_stat_field("inactive_file_x 1\ninactive_file 4096\n", "inactive_file"), 4096u);
  EXPECT_EQ(limit_of("max\n"), UINT64_MAX);
  std::vector<pid_t> pids;
  append_pids("5\n0\nx\n-3\n70\n", pids);
  EXPECT_EQ(pids, (std::vector<pid_t>{5, 70}));
}

}  // namespace
}  // namespace medes
