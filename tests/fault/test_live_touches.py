"""A dedup'd sandbox that is touched: it gets its pages and sleeps on, until what it touches looks like work."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from medes import native
from medes.agent.sandboxes.working_sets import unpack_pages
from tests.support.live import Deduper, Program, settled

pytestmark = pytest.mark.live
WAIT_S = 30.0
ALL = 1 << 18  # more touches than any of these programs has pages
READ_ALL = (
    "exec [__import__('ctypes').string_at(int(b, 16), int(e, 16) - int(b, 16))[:1] for b, e in"
    " [m.split()[0].split('-') for m in open('/proc/self/maps') if m.split()[1][0] == 'r' and '[v' not in m]] and 'read'"
)


def test_touches_bring_pages_and_no_restore(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert live.placed_pages == 0
    program.ask("touch")
    program.ask("touch")
    placed = settled(live)
    assert 0 < placed < live.evict_result["evicted_pages"] // 4
    assert len(unpack_pages(live.touched())) == placed  # what was touched, and nothing else
    program.ask("touch")
    assert settled(live) - placed < 16  # another piece of its data, by the code that is there
    assert live.state == "dormant"
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_one_touch_too_many_restores(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], touches_per_s_max=8)
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)
    assert live.stats()["demand_woken"] == 1
    # Those before it may have been of an earlier second; what led to the restore belongs to it.
    worked, slept = unpack_pages(live.working_set()), unpack_pages(live.touched())
    assert len(worked) > 8
    assert not set(worked) & set(slept)


def test_a_sandbox_may_come_back_by_touches_alone(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert program.ask(READ_ALL) == "read"
    assert live.wait_complete(WAIT_S)
    assert live.stats()["demand_woken"] == 1  # when more was back than out
    assert live.placed_pages == live.evict_result["evicted_pages"]
    assert program.ask("check") == "intact"


def test_what_is_in_the_tick_set_stays(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    for _ in range(3):
        program.ask("touch")
    first, tick_set = settled(live), live.touched()
    live.restore()
    assert live.wait_complete(WAIT_S)
    live = deduper.dedup([program.pid], tick_set=tick_set, touches_per_s_max=ALL)
    assert live.evict_result["tick_pages"] > first // 2
    program.ask("touch")
    assert settled(live) < first // 4
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_a_tick_set_keeps_a_quarter_at_most(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid])
    assert program.ask(READ_ALL) == "read"
    assert live.wait_complete(WAIT_S)
    everything = live.working_set()
    assert len(unpack_pages(everything)) > live.evict_result["evicted_pages"] // 2
    live = deduper.dedup([program.pid], tick_set=everything, touches_per_s_max=ALL)
    result = live.evict_result
    assert 0 < result["tick_pages"] <= (result["evicted_pages"] + result["resident_pages"]) // 4
    assert result["evicted_pages"] > result["resident_pages"]
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_what_is_given_up_again_counts_no_more(deduper: Deduper, program: Program) -> None:
    program.ask(
        "exec (globals().update(m=__import__('mmap').mmap(-1, 4 << 20, flags=0x22)), m.write(b'x' * (4 << 20)))[1]"
    )
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert program.ask("exec sum(m[i] for i in range(0, 2 << 20, 4096))") == str(512 * ord("x"))
    placed = settled(live)
    assert placed >= 512
    program.ask("exec m.madvise(4, 0, 2 << 20)")  # MADV_DONTNEED
    assert settled(live) < placed - 400
    assert program.ask("exec m[0] == 0 and m[3 << 20] == ord('x')") == "True"
    assert live.state == "dormant"


def test_another_instance_finds_the_tick_set_by_region(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    for _ in range(3):
        program.ask("touch")
    first, tick_set = settled(live), live.touched()
    with Program() as other:
        live = deduper.dedup([other.pid], tick_set=tick_set, touches_per_s_max=ALL)
        assert live.evict_result["tick_pages"] > first // 3
        other.ask("touch")
        assert settled(live) < 0.9 * first
        live.restore()
        assert live.wait_complete(WAIT_S)
        assert other.ask("check") == "intact"


def test_it_sleeps_on_under_the_next_server(tmp_path: Path, program: Program) -> None:
    deduper = Deduper(tmp_path)
    image, file, bases, _ = deduper.encode([program.pid])
    live = deduper.server.evict(image, file, bases, touches_per_s_max=ALL)
    program.ask("touch")
    placed = settled(live)
    assert placed > 0
    deduper.close()
    server = native.FaultServer()
    live = server.adopt(native.SandboxFile.open(file.path), deduper.bases(), touches_per_s_max=ALL)
    assert (live.state, live.placed_pages) == ("dormant", placed)
    program.ask("touch")
    assert live.state == "dormant"
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"
    server.close()


def test_mappings_change_while_it_sleeps(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    code = (
        "exec (lambda m: (m.write(b'y' * 8192), m.resize(65536), m[8191], m.close()))"
        "(__import__('mmap').mmap(-1, 16384))[2]"
    )
    for _ in range(5):
        assert program.ask(code) == str(ord("y"))
    assert live.state == "dormant"
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_a_fork_restores_parent_and_child(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    assert program.ask("exec fork()") == "forked"
    assert program.ask("exec reap()") == "intact"
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_state_changes_while_it_sleeps(deduper: Deduper, program: Program) -> None:
    for n in itertools.count():
        live = deduper.dedup([program.pid], touches_per_s_max=ALL)
        assert program.ask("change") == "changed"
        assert program.ask("check") == "intact"
        if n == 3:
            break
        live.restore(lazy=n % 2 == 0)
        assert live.wait_complete(WAIT_S)
        assert program.ask("check") == "intact"


def test_new_memory_comes_in_runs(deduper: Deduper, program: Program) -> None:
    """Pages of a mapping that were never touched before the dedup op are new to the program, not missing."""
    mapped = "exec (globals().update(m=__import__('mmap').mmap(-1, 16 << 20, flags=0x22)), m.write(b'x'))[1]"
    assert program.ask(mapped) == "1"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    pages = range(4096, 16 << 20, 4096)
    written = (
        f"exec [m.__setitem__(i, 7) for i in range({pages.start}, {pages.stop}, {pages.step})] and 'written'"
    )
    assert program.ask(written) == "written"
    stats = live.stats()
    assert stats["pages_zero"] >= len(pages)
    assert stats["faults_zero"] < stats["pages_zero"] / 16
    assert (
        program.ask("exec sum(m[:4]) == ord('x') and sum(m[4096:]) == 7 * 4095 and not any(m[4097:8192])")
        == "True"
    )
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_new_memory_comes_in_runs_up_to_the_end_of_its_mapping(deduper: Deduper, program: Program) -> None:
    cut = (  # 100 pages, of which the first is written, before one that nobody may touch
        "exec (globals().update(m=__import__('mmap').mmap(-1, 101 << 12, flags=0x22), c=__import__('ctypes')),"
        " m.write(b'x'), c.CDLL(None).mprotect("
        "c.c_void_p(c.addressof(c.c_char.from_buffer(m)) + (100 << 12)), c.c_size_t(4096), 0))[1:]"
    )
    assert program.ask(cut) == "(1, 0)"
    live = deduper.dedup([program.pid], touches_per_s_max=ALL)
    before = live.stats()["faults_zero"]
    assert (
        program.ask("exec [m.__setitem__(i, 7) for i in range(4096, 100 << 12, 4096)] and 'written'")
        == "written"
    )
    assert live.stats()["faults_zero"] - before < 32
    assert program.ask("exec sum(m[4096:100 << 12]) == 7 * 99") == "True"
    live.restore()
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"
