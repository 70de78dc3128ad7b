"""Pages that a sleeper was touched at go again, once they are left alone; what ticks stays, and no byte is lost."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from medes import native
from medes.agent.sandboxes.working_sets import unpack_pages
from medes.errors import BusyError
from tests.fault.test_live_faults import RECLAIM_POINTS, adopt, check_intact, kill_at
from tests.support.live import Deduper, Program, settled
from tests.support.seed import SEED

pytestmark = pytest.mark.live
WAIT_S = 30.0
# Of an eviction, too: the calls are the same.
SHARED_POINTS = [
    "inject.entered",
    "inject.returned",
    "inject.stop_waits",
    "evict.discarding",
    "evict.discarded_one",
    "inject.registers_back",
]
ALL = 1 << 18  # more touches than any of these programs has pages
ARENA = (
    "exec (globals().update(m=__import__('mmap').mmap(-1, 24 << 20, flags=0x22)),"
    " [m.__setitem__(slice(i, i + 8), i.to_bytes(8, 'little')) for i in range(0, 24 << 20, 4096)])[0] or 'made'"
)
SUM = "exec all(int.from_bytes(m[i:i + 8], 'little') == i for i in range({}, {}, 4096))"


def restored(live: native.LiveSandbox, program: Program) -> None:
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_what_was_touched_once_goes_again(deduper: Deduper, program: Program) -> None:
    assert program.ask(ARENA) == "made"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    evicted = live.evict_result["evicted_pages"]
    assert program.ask(SUM.format(0, 2 << 20)) == "True"
    placed = settled(live)
    assert placed >= 512 and live.reclaimable_pages == placed
    result, notes = live.reclaim()
    assert result["reclaimed_pages"] >= 512 and result["stopped_us"] > 0, notes
    assert live.state == "dormant"
    # A thread may touch some again on its way back to where it slept.
    assert placed - result["reclaimed_pages"] <= live.placed_pages <= placed - 500
    assert 500 <= len(unpack_pages(live.reclaimed())) <= result["reclaimed_pages"]
    assert live.evict_result["evicted_pages"] == evicted
    # It comes as it did the first time, and all the rest.
    assert program.ask(SUM.format(0, 8 << 20)) == "True"
    restored(live, program)
    assert program.ask(SUM.format(0, 8 << 20)) == "True"


def test_what_is_touched_again_stays(deduper: Deduper, program: Program) -> None:
    assert program.ask(ARENA) == "made"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert program.ask(SUM.format(0, 1 << 20)) == "True"
    settled(live)
    assert live.reclaim()[0]["reclaimed_pages"] >= 256
    assert program.ask(SUM.format(0, 1 << 19)) == "True"  # half of them
    placed = settled(live)
    assert placed >= 128
    result, _ = live.reclaim()
    assert result["tick_pages"] >= 128
    assert live.placed_pages >= placed - result["reclaimed_pages"] >= 128
    before = settled(live)
    assert program.ask(SUM.format(0, 1 << 19)) == "True"
    assert settled(live) - before < 64  # the code of the answer at most
    restored(live, program)


def test_what_was_written_stays_as_it_is_now(deduper: Deduper, program: Program) -> None:
    assert program.ask(ARENA) == "made"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    for n in range(3):
        written = f"exec [m.__setitem__(i + 8, {n + 1}) for i in range(0, 1 << 20, 8192)] and 'written'"
        assert program.ask(written) == "written"
        settled(live)
        result, _ = live.reclaim()
        assert n > 0 or result["changed_pages"] >= 128
        assert program.ask(f"exec all(m[i + 8] == {n + 1} for i in range(0, 1 << 20, 8192))") == "True"
    assert program.ask("change") == "changed"
    restored(live, program)
    assert program.ask("exec all(m[i + 8] == 3 for i in range(0, 1 << 20, 8192))") == "True"
    assert program.ask(SUM.format(0, 8 << 20)) == "True"


def test_too_little_is_not_worth_a_stop(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    program.ask("touch")
    placed = settled(live)
    result, _ = live.reclaim(pages_min=placed + 1)
    assert (result["reclaimed_pages"], result["stopped_us"]) == (0, 0)
    assert live.placed_pages == placed


def test_a_part_goes_when_a_part_is_asked_for(deduper: Deduper, program: Program) -> None:
    assert program.ask(ARENA) == "made"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert program.ask(SUM.format(0, 1 << 20)) == "True"
    placed = settled(live)
    assert live.reclaim(pages_max=100)[0]["reclaimed_pages"] == 100
    assert placed - 100 <= live.placed_pages < placed - 50
    assert live.reclaim()[0]["reclaimed_pages"] >= 100
    assert program.ask(SUM.format(0, 24 << 20)) == "True"


def test_only_a_sleeper_is_reclaimed(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], hold_frozen=True)
    assert live.reclaim()[0]["stopped_us"] == 0  # nothing touches it
    restored(live, program)
    assert live.reclaim()[0]["stopped_us"] == 0
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    program.ask("touch")
    settled(live)
    live.detach()
    assert live.reclaim()[0]["stopped_us"] == 0


def test_another_program_in_the_process_keeps_its_memory(deduper: Deduper, tmp_path: Path) -> None:
    """The same bytes lie at the same addresses, and are no longer what is served."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, binary = Path(__file__).with_name("execs.c"), tmp_path / "execs"
    subprocess.run([compiler, "-O1", "-static", "-no-pie", "-o", str(binary), str(source)], check=True)
    with Program([str(binary)]) as program:
        live = deduper.dedup([program.pid], touches_per_s_max=ALL)
        assert program.ask("touch") == "0"
        assert settled(live) >= 512
        program.tell("exec")
        assert program.hear() == "ready"
        result, _ = live.reclaim()
        assert (result["reclaimed_pages"], result["stopped_us"]) == (0, 0)
        assert program.ask("check") == "0"


def test_pages_that_moved_go_from_where_they_are(deduper: Deduper, program: Program) -> None:
    assert program.ask(ARENA) == "made"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert program.ask("exec m.resize(1 << 27) or 'moved'") == "moved"
    # New memory lies where the arena was, perhaps, and must not go with it.
    assert (
        program.ask("exec globals().update(n=[bytes([7]) * (1 << 20) for _ in range(8)]) or 'new'") == "new"
    )
    assert program.ask(SUM.format(0, 4 << 20)) == "True"
    settled(live)
    assert live.reclaim()[0]["reclaimed_pages"] >= 1024
    assert program.ask("exec all(x == bytes([7]) * (1 << 20) for x in n)") == "True"
    assert program.ask(SUM.format(0, 8 << 20)) == "True"
    restored(live, program)


def test_the_next_agent_knows_where_pages_that_moved_were_taken(tmp_path: Path) -> None:
    """They were all back when they moved, so nothing of it was to be noted then."""
    with Program() as program:
        assert program.ask(ARENA) == "made"
        small = "n=__import__('mmap').mmap(-1, 1 << 20, flags=0x22)"
        assert program.ask(f"exec globals().update({small}) or 'made'") == "made"
        assert program.ask("exec n.write(m[:1 << 20])") == str(1 << 20)
        read = SUM.format(0, 1 << 20).replace("m[", "n[")
        deduper = Deduper(tmp_path)
        live = deduper.dedup([program.pid], touches_per_s_max=ALL)
        assert program.ask(read) == "True"
        assert program.ask("exec n.resize(1 << 27) or 'moved'") == "moved"
        settled(live)
        assert live.reclaim()[0]["reclaimed_pages"] >= 256
        deduper.close()
        server, adopted = adopt(tmp_path)
        assert adopted is not None
        assert program.ask(read) == "True"
        restored(adopted, program)
        server.close()


def test_new_memory_behind_what_moved_whole_is_served_by_the_next_agent(tmp_path: Path) -> None:
    """Nobody knows of it but the kernel, and its fault came while there was no agent."""
    with Program() as program:
        small = "n=__import__('mmap').mmap(-1, 1 << 20, flags=0x22)"
        assert program.ask(f"exec globals().update({small}) or n.write(bytes([7]) * (1 << 20))") == str(
            1 << 20
        )
        deduper = Deduper(tmp_path)
        deduper.dedup([program.pid], touches_per_s_max=ALL)
        assert program.ask("exec n[:1 << 20] == bytes([7]) * (1 << 20)") == "True"
        assert program.ask("exec n.resize(1 << 27) or 'moved'") == "moved"
        deduper.close()
        program.tell("exec n[100 << 20] or 'new'")
        time.sleep(0.2)
        server, adopted = adopt(tmp_path)
        assert adopted is not None
        assert program.hear().endswith(" new")
        restored(adopted, program)
        assert program.ask("exec n[:1 << 20] == bytes([7]) * (1 << 20)") == "True"
        server.close()


def test_what_is_locked_or_given_up_meanwhile_is_left_alone(deduper: Deduper, program: Program) -> None:
    assert program.ask(ARENA) == "made"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert program.ask(SUM.format(0, 2 << 20)) == "True"
    base = "__import__('ctypes').addressof(__import__('ctypes').c_char.from_buffer(m))"
    lock = f"exec __import__('ctypes').CDLL(None).mlock(__import__('ctypes').c_void_p({base}), 1 << 20)"
    assert program.ask(lock) == "0"
    given_up = f"exec __import__('ctypes').CDLL(None).madvise(__import__('ctypes').c_void_p({base} + (1 << 20)), 1 << 19, 4)"
    assert program.ask(given_up) == "0"  # MADV_DONTNEED
    settled(live)
    result, notes = live.reclaim()
    assert result["reclaimed_pages"] >= 128, (live.state, live.placed_pages, result, notes)
    assert program.ask(SUM.format(0, 1 << 20)) == "True"
    assert program.ask("exec not any(m[1 << 20:(1 << 20) + (1 << 19)])") == "True"
    assert program.ask(SUM.format((1 << 20) + (1 << 19), 8 << 20)) == "True"
    restored(live, program)


@pytest.mark.parametrize("point", [*RECLAIM_POINTS, *SHARED_POINTS])
def test_killed_in_a_reclaim(point: str, tmp_path: Path) -> None:
    with Program() as program:
        deduper = Deduper(tmp_path)
        live = deduper.dedup([program.pid], touches_per_s_max=ALL)
        for _ in range(8):
            program.ask("touch")
        assert settled(live) > 100
        deduper.close()
        kill_at(point, program.pid, tmp_path, "reclaim")
        time.sleep(0.05)  # the sandbox may well touch its memory before anyone serves it
        server, adopted = adopt(tmp_path)
        assert adopted is not None
        check_intact(program, 9)
        adopted.restore()
        assert adopted.wait_complete(WAIT_S)
        check_intact(program, 12)
        server.close()


BUSY_PROGRAM = """
import mmap, random, sys, threading, time
arenas = [mmap.mmap(-1, 4 << 20, flags=0x22) for _ in range(3)]
for n, arena in enumerate(arenas):
    for i in range(0, 4 << 20, 4096):
        arena[i:i + 8] = (i + n).to_bytes(8, "little")
known = {}
stop = False
broken = []
def read(n):
    rng = random.Random(n)
    while not stop:
        page = rng.randrange(1024) * 4096
        if int.from_bytes(arenas[n][page:page + 8], "little") != page + n:
            broken.append(("read", n, page))
        time.sleep(rng.random() / 500)
def write():
    rng = random.Random(9)
    while not stop:
        page, value = rng.randrange(1024) * 4096, rng.randrange(256)
        if (page in known) and arenas[2][page + 9] != known[page]:
            broken.append(("written", page))
        arenas[2][page + 9] = known[page] = value
        time.sleep(rng.random() / 500)
def remap():
    rng = random.Random(8)
    while not stop:
        with mmap.mmap(-1, 1 << 16, flags=0x22) as m:
            m.write(b"z" * 65536)
            m.resize(1 << 18)
            m.madvise(4, 0, 4096)
            if m[0] != 0 or m[65535] != 122 or m[65536] != 0:
                broken.append(("remap",))
        time.sleep(rng.random() / 300)
threads = [threading.Thread(target=read, args=(0,)), threading.Thread(target=read, args=(1,)),
           threading.Thread(target=write), threading.Thread(target=remap)]
for t in threads:
    t.start()
print("ready", flush=True)
for line in sys.stdin:
    if line == "end\\n":
        stop = True
        for t in threads:
            t.join()
        for n in (0, 1, 2):
            for page in range(0, 4 << 20, 4096):
                if int.from_bytes(arenas[n][page:page + 8], "little") != page + n:
                    broken.append(("end", n, page))
    print(0, broken[:5], flush=True)
"""


def test_reclaims_beside_a_program_that_works(deduper: Deduper) -> None:
    """Touches, writes and changed mappings at every instant of many reclaims, and somebody who reads from outside."""
    rng = random.Random(SEED)
    with Program(["python3", "-c", BUSY_PROGRAM]) as program:
        end = threading.Event()
        reader = threading.Thread(target=read_from_outside, args=(program.pid, end))
        reader.start()
        try:
            took = 0
            for _ in range(4):
                live = deduper.dedup([program.pid], touches_per_s_max=ALL)
                for _ in range(12):
                    time.sleep(rng.random() / 20)
                    with contextlib.suppress(
                        BusyError
                    ):  # a thread was in a call that waits for its event to be read
                        took += live.reclaim()[0]["reclaimed_pages"]
                    if live.state != "dormant":
                        break
                live.restore(lazy=rng.random() < 0.5)
                assert live.wait_complete(WAIT_S)
            assert took > 0
            assert program.ask("end") == "[]"
        finally:
            end.set()
            reader.join()


def read_from_outside(pid: int, end: threading.Event) -> None:
    """As a debugger does: through /proc/PID/mem, pages that are out and pages that are there."""
    rng = random.Random(SEED)
    maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    ranges = [tuple(int(x, 16) for x in f[0].split("-")) for f in maps if f[1] == "rw-p" and len(f) == 5]
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        while not end.wait(0.001):
            begin, stop = rng.choice(ranges)
            try:
                os.pread(fd, 64, rng.randrange(begin, stop - 64))
            except OSError:
                continue  # unmapped since
    finally:
        os.close(fd)


def test_a_restore_in_the_middle_of_a_reclaim_is_whole(deduper: Deduper, program: Program) -> None:
    assert program.ask(ARENA) == "made"
    for n in range(6):
        live = deduper.dedup([program.pid], touches_per_s_max=ALL)
        assert program.ask(SUM.format(0, 3 << 20)) == "True"
        settled(live)
        reclaim = threading.Thread(target=live.reclaim)
        reclaim.start()
        time.sleep(n * 0.002)
        live.restore(lazy=n % 2 == 0)
        assert live.wait_complete(WAIT_S)
        reclaim.join()
        assert program.ask(SUM.format(0, 8 << 20)) == "True"
        assert program.ask("check") == "intact"
