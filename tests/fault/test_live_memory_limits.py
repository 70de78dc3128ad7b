"""A memory cgroup that is full for a moment, or that parent and child fit into only as long as they share."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medes import native
from medes.agent.sandboxes.working_sets import unpack_pages
from tests.support.live import Deduper, Program
from tests.support.memory_cgroup import MemoryCgroup, memory_cgroup

pytestmark = pytest.mark.live
WAIT_S = 30.0
MIB = 1 << 20
HOG = """
import mmap, sys
print("ready", flush=True)
for line in sys.stdin:
    m = mmap.mmap(-1, int(line), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, int(line), 4096):
        m[at] = 1
    print("held", flush=True)
"""
READER = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    with open(line.rstrip("\\n"), "rb") as file:
        while file.read(1 << 20):
            pass
    print("read", flush=True)
"""
FORKER = """
import mmap, os, signal, sys
m = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 64 << 20, 4096):
    m[at : at + 4096] = (at * 2654435761 & (1 << 64) - 1).to_bytes(8, "little") * 512
def state():
    for at in range(0, 64 << 20, 4096):
        if m[at : at + 8] != (at * 2654435761 & (1 << 64) - 1).to_bytes(8, "little"):
            return "BROKEN"
    return "intact"
print("ready", flush=True)
for line in sys.stdin:
    if line == "fork\\n":
        child = os.fork()
        if child == 0:
            os._exit(0 if state() == "intact" else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    elif line == "check under signals\\n":
        signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        answer = state()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(answer, flush=True)
    elif line == "fork and write\\n":
        child = os.fork()
        if child == 0:
            os.read(0, 3)
            for at in range(0, 24 << 20, 4096):
                m[at] = 1
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        print(state(), flush=True)
"""


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    with memory_cgroup() as group:
        yield group


def _next_events(server: native.FaultServer, wanted: str) -> None:
    seen: list[str] = []
    while wanted not in seen:
        assert select.select([server.event_fd], [], [], WAIT_S)[0], f"no {wanted} after {seen}"
        seen += [event for _, event in server.take_events()]


@pytest.mark.parametrize("killer", ["off", "on"])
@pytest.mark.parametrize("how", ["eager", "lazy", "demand"])
def test_a_restore_into_a_full_group_waits_for_room(
    deduper: Deduper, group: MemoryCgroup, how: str, killer: str
) -> None:
    """Where the kernel kills for room (cgroup v2 always does) as well as where it refuses."""
    control = group.folder / "memory.oom_control"
    if killer == "off":
        if not control.exists():
            pytest.skip("only cgroup v1 can be full without killing")
        control.write_text("1")
    group.limit(96 * MIB)
    with Program([sys.executable, "-c", FORKER]) as program, Program([sys.executable, "-c", HOG]) as hog:
        group.add(program.pid)
        group.add(hog.pid)
        # What it has was charged to the group before: it is evicted first, and comes back into this one.
        live = deduper.dedup([program.pid])
        hog.tell(str(60 * MIB))
        assert hog.hear() == "held"
        if how == "demand":
            program.tell("check")
        else:
            live.restore(lazy=how == "lazy")
        _next_events(deduper.server, "short_of_memory")
        assert not live.wait_complete(0.5)
        assert live.state == "restoring"
        assert live.stats()["short_of_memory"]
        if how != "demand":
            program.tell("check")
        assert hog.process.poll() is None
        hog.process.kill()
        assert program.hear() == "intact"
        assert live.wait_complete(WAIT_S)


def test_a_fork_after_the_wake_does_not_outgrow_the_limit(deduper: Deduper, group: MemoryCgroup) -> None:
    group.limit(100 * MIB)
    with Program([sys.executable, "-c", FORKER]) as program:
        group.add(program.pid)
        for _ in range(2):
            live = deduper.dedup([program.pid])
            program.tell("fork")
            assert program.hear() == "0"
            program.tell("check")
            assert program.hear() == "intact"
            assert live.wait_complete(WAIT_S)


def test_what_parent_and_child_may_write_is_left_room_for(deduper: Deduper, group: MemoryCgroup) -> None:
    """They share what came back before the fork: the copy that a write makes of it is the program's to have, not ours."""
    group.limit(100 * MIB)
    with Program([sys.executable, "-c", FORKER]) as program:
        group.add(program.pid)
        live = deduper.dedup([program.pid])
        live.restore(lazy=True, background_bytes_per_s=64 * MIB)
        while live.stats()["pages_background"] < 40 * MIB // native.PAGE_BYTES:
            time.sleep(0.002)
        program.tell("fork and write")
        while not live.stats()["short_of_memory"]:
            assert not live.wait_complete(0.05), (
                "parent and child were filled with what leaves no room for copies"
            )
        program.tell("go")
        assert program.hear() == "0"
        program.tell("check")
        assert program.hear() == "intact"
        assert live.wait_complete(WAIT_S)


def test_a_touch_into_a_full_group_waits_for_room(deduper: Deduper, group: MemoryCgroup) -> None:
    """A sleeper's touches: nobody in the group is killed for them, and they come when there is room."""
    group.limit(96 * MIB)
    with Program([sys.executable, "-c", FORKER]) as program, Program([sys.executable, "-c", HOG]) as hog:
        group.add(program.pid)
        group.add(hog.pid)
        live = deduper.dedup([program.pid], touches_per_s_max=1 << 18)
        hog.tell(str(76 * MIB))
        assert hog.hear() == "held"
        program.tell("check")
        _next_events(deduper.server, "short_of_memory")
        time.sleep(0.5)
        assert hog.process.poll() is None
        assert live.state == "dormant"  # less is back than out
        hog.process.kill()
        assert program.hear() == "intact"
        assert live.wait_complete(WAIT_S)  # more than half of it was touched


def test_who_is_interrupted_while_it_waits_for_room_touches_once(
    deduper: Deduper, group: MemoryCgroup
) -> None:
    """Each signal makes it fault anew: that is no touch, and asks for nothing again."""
    group.limit(96 * MIB)
    with Program([sys.executable, "-c", FORKER]) as program, Program([sys.executable, "-c", HOG]) as hog:
        group.add(program.pid)
        group.add(hog.pid)
        live = deduper.dedup([program.pid], touches_per_s_max=1 << 18)
        hog.tell(str(76 * MIB))
        assert hog.hear() == "held"
        program.tell("check under signals")
        _next_events(deduper.server, "short_of_memory")
        time.sleep(1.0)
        touched = unpack_pages(live.touched())
        assert live.state == "dormant"
        assert len(touched) == len(set(touched))
        hog.process.kill()
        assert program.hear() == "intact"
        assert live.wait_complete(WAIT_S)


def test_a_touch_makes_room_where_the_kernel_can(
    deduper: Deduper, group: MemoryCgroup, tmp_path: Path
) -> None:
    """A group that is full of what files were read, as groups are after some time: that goes, and nothing waits."""
    file = tmp_path / "read"
    file.touch()
    os.truncate(file, 128 * MIB)  # a hole: it takes no disk, and is cached like any file when it is read
    group.limit(96 * MIB)
    with (
        Program([sys.executable, "-c", FORKER]) as program,
        Program([sys.executable, "-c", READER]) as reader,
    ):
        group.add(program.pid)
        group.add(reader.pid)
        live = deduper.dedup([program.pid], touches_per_s_max=1 << 18)
        reader.tell(str(file))
        assert reader.hear() == "read"
        if group.used_bytes() < 64 * MIB:
            pytest.skip("what is read of this file system is not charged to who reads it")
        program.tell("check")
        assert program.hear() == "intact"
        assert live.wait_complete(WAIT_S)
        assert not live.stats()["short_of_memory"]
