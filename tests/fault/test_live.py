"""The live driver on real processes: dedup, every way of waking, state intact, errors leave it warm."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medes import native
from medes.errors import AlreadyExistsError, CancelledError, LostError, ProcessGoneError, TracedError
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0


def _events(server: native.FaultServer, last: str) -> list[str]:
    """Events up to and with `last`."""
    seen: list[str] = []
    while last not in seen:
        assert select.select([server.event_fd], [], [], WAIT_S)[0], f"no {last} event after {seen}"
        seen += [event for _, event in server.take_events()]
    return seen


def test_dedup_frees_the_memory_and_an_idle_sandbox_stays_dormant(deduper: Deduper, program: Program) -> None:
    warm_bytes = native.private_bytes([program.pid])
    live = deduper.dedup([program.pid])
    result = live.evict_result
    assert result["threads"] == 3
    assert result["evicted_pages"] > 2000
    assert native.private_bytes([program.pid]) < warm_bytes - result["evicted_pages"] * 4096 * 9 // 10
    assert not select.select([deduper.server.event_fd], [], [], 0.3)[0]
    assert live.state == "dormant"


def test_eager_restore_brings_everything_back(deduper: Deduper, program: Program) -> None:
    warm_bytes = native.private_bytes([program.pid])
    live = deduper.dedup([program.pid])
    live.restore(lazy=False)
    assert live.wait_complete(WAIT_S)
    assert live.state == "complete"
    assert native.private_bytes([program.pid]) < warm_bytes * 1.05  # nothing is there twice
    assert program.ask("check") == "intact"
    assert live.stats()["faults_demand"] == 0
    assert deduper.server.stats()["descriptors"] == 0


def test_lazy_restore_answers_while_pages_are_missing(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid])
    live.restore(background_bytes_per_s=20 << 20)
    assert live.wait_ready(WAIT_S)
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)
    stats = live.stats()
    assert stats["faults_demand"] > 0
    assert stats["pages_total"] == live.evict_result["evicted_pages"]
    assert _events(deduper.server, "complete") == ["ready", "complete"]


def test_a_touched_sandbox_wakes_by_itself(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid])
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)
    assert live.stats()["demand_woken"] == 1
    assert _events(deduper.server, "complete") == ["demand_woken", "ready", "complete"]


def test_the_recorded_working_set_saves_faults(deduper: Deduper, program: Program) -> None:
    program.ask("touch")
    live = deduper.dedup([program.pid])
    live.restore(background_bytes_per_s=5 << 20)
    program.ask("touch")
    recorded = live.working_set()
    without = live.stats()["faults_demand"]
    live.wait_complete(WAIT_S)
    live = deduper.dedup([program.pid])
    live.restore(working_set=recorded, background_bytes_per_s=5 << 20)
    assert live.wait_ready(WAIT_S)
    program.ask("touch")
    stats = live.stats()
    assert stats["pages_prefetched"] > 0
    assert stats["faults_demand"] < without / 2
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_a_first_record_waits_for_the_request(deduper: Deduper, program: Program) -> None:
    """Later restores go by it: what comes behind a request that is still on its way is not seen to be touched."""
    for _ in range(20):
        live = deduper.dedup([program.pid])
        begun_s = time.monotonic()
        live.restore()
        time.sleep(0.04)
        program.ask("touch")
        background = live.stats()["pages_background"]
        took_s = time.monotonic() - begun_s
        assert live.wait_complete(WAIT_S)
        if took_s < 0.1:
            assert background == 0
            return
    pytest.skip("this machine takes more than 100 ms for a touch")


def test_many_rounds_with_changing_state(deduper: Deduper, program: Program) -> None:
    for round_number in range(6):
        live = deduper.dedup([program.pid])
        if round_number % 2:
            live.restore(lazy=round_number % 3 == 0)
        assert program.ask("check") == "intact"
        assert program.ask("change") == "changed"
        assert live.wait_complete(WAIT_S)
        assert program.ask("check") == "intact"


def test_pages_written_after_the_capture_stay(deduper: Deduper, program: Program) -> None:
    image, file, bases, _ = deduper.encode([program.pid])
    assert program.ask("change") == "changed"
    live = deduper.server.evict(image, file, bases)
    assert live.evict_result["changed_pages"] > 0
    assert program.ask("check") == "intact"


def test_a_second_dedup_uses_the_same_descriptor(deduper: Deduper, program: Program) -> None:
    counts = []
    for _ in range(3):
        live = deduper.dedup([program.pid])
        live.restore(lazy=False)
        assert live.wait_complete(WAIT_S)
        counts.append(len(list(Path(f"/proc/{program.pid}/fd").iterdir())))
    assert counts == [counts[0]] * 3


def test_held_frozen_until_restored(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid], hold_frozen=True)
    program.tell("check")
    assert program.process.stdout is not None
    assert not select.select([program.process.stdout], [], [], 0.3)[0]
    assert live.state == "dormant"
    live.restore()
    assert program.hear().endswith("intact")
    assert live.wait_complete(WAIT_S)


def test_cancel_before_the_eviction_leaves_it_warm(deduper: Deduper, program: Program) -> None:
    image, file, bases, _ = deduper.encode([program.pid])
    cancel = native.CancelFlag()
    cancel.cancel()
    with pytest.raises(CancelledError):
        deduper.server.evict(image, file, bases, cancel=cancel)
    assert file.page_state_counts["evicted"] == 0
    assert program.ask("check") == "intact"


def test_a_file_is_used_for_one_eviction(deduper: Deduper, program: Program) -> None:
    image, file, bases, _ = deduper.encode([program.pid])
    live = deduper.server.evict(image, file, bases)
    with pytest.raises(AlreadyExistsError):
        deduper.server.evict(image, file, bases)
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)
    with pytest.raises(AlreadyExistsError):
        deduper.server.evict(image, file, bases)


def test_a_process_that_exits_before_the_eviction(deduper: Deduper, program: Program) -> None:
    image, file, bases, _ = deduper.encode([program.pid])
    program.process.kill()
    program.process.wait()
    with pytest.raises(ProcessGoneError):
        deduper.server.evict(image, file, bases)


def test_a_process_that_is_killed_while_dormant(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid])
    program.process.kill()
    program.process.wait()
    assert "process_gone" in _events(deduper.server, "process_gone")
    with pytest.raises(ProcessGoneError):
        live.wait_complete(WAIT_S)


TRACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()
print("traced", flush=True)
time.sleep(60)
"""


def test_a_second_tracer_is_respected(deduper: Deduper, program: Program) -> None:
    image, file, bases, _ = deduper.encode([program.pid])
    with Program([sys.executable, "-c", TRACER, str(program.pid)], ready="traced\n"):
        with pytest.raises(TracedError):
            deduper.server.evict(image, file, bases)
        assert program.ask("check") == "intact"
    live = deduper.server.evict(image, file, bases)  # the tracer is gone: the same file still serves
    assert program.ask("check") == "intact"
    assert live.wait_complete(WAIT_S)


def test_damage_in_the_stored_form_never_reaches_the_program(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid])
    assert deduper.slab is not None
    # The base's own pages are shared memory: flip a byte in each, as a broken memory module would.
    with Path(deduper.slab.path).open("r+b") as slab:
        for page in range(1, deduper.slab.page_count):
            slab.seek(page * 4096 + 100)
            byte = slab.read(1)
            slab.seek(page * 4096 + 100)
            slab.write(bytes([byte[0] ^ 0xFF]))
    live.restore()
    with pytest.raises(LostError):
        live.wait_complete(WAIT_S)
    assert live.state == "lost"
    assert "corrupt" in live.lost_reason
    program.tell("check")
    assert program.process.stdout is not None
    assert not select.select([program.process.stdout], [], [], 0.5)[0]  # it waits; it never answers wrongly


def test_signals_and_sleeps_survive(deduper: Deduper) -> None:
    code = (
        "import signal, sys, time\n"
        "hits = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))\n"
        "print('ready', flush=True)\n"
        "begin = time.monotonic()\n"
        "time.sleep(2)\n"
        "print(round(time.monotonic() - begin, 1), len(hits), flush=True)\n"
    )
    with Program([sys.executable, "-c", code]) as program:
        live = deduper.dedup([program.pid])
        os.kill(program.pid, signal.SIGUSR1)
        slept, hits = program.hear().split()
        assert float(slept) >= 2.0
        assert hits == "1"
        assert live.wait_complete(WAIT_S)


def test_an_epoll_server_does_not_notice(deduper: Deduper) -> None:
    code = (
        "import select, sys, os\n"
        "poll = select.epoll()\n"
        "poll.register(0, select.EPOLLIN)\n"
        "print('ready', flush=True)\n"
        "rounds = 0\n"
        "while True:\n"
        "    poll.poll()\n"
        "    rounds += 1\n"
        "    os.read(0, 100)\n"
        "    print(rounds, 'served', flush=True)\n"
    )
    with Program([sys.executable, "-c", code]) as program:
        live = deduper.dedup([program.pid])
        assert not select.select([deduper.server.event_fd], [], [], 0.3)[0]
        assert program.ask("x") == "served"
        assert live.wait_complete(WAIT_S)


def test_probe_says_nothing_is_missing_here() -> None:
    assert native.probe_live() == {}


def test_closing_the_server_leaves_the_sandbox_waiting(tmp_path: Path, program: Program) -> None:
    deduper = Deduper(tmp_path)
    image, file, bases, _ = deduper.encode([program.pid])
    deduper.server.evict(image, file, bases)
    deduper.close()
    program.tell("check")
    assert program.process.stdout is not None
    assert not select.select([program.process.stdout], [], [], 0.3)[0]
    second = native.FaultServer(1)
    live = second.adopt(native.SandboxFile.open(file.path), deduper.bases())
    assert program.hear().endswith("intact")
    assert live.wait_complete(WAIT_S)
    second.close()


def test_spawning_children_while_pages_are_missing(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid])
    answer = program.ask(
        "exec __import__('subprocess').run(['/bin/echo', 'out'], capture_output=True, text=True).stdout.strip()"
    )
    assert answer == "out"
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


def test_a_forked_child_has_all_its_pages(deduper: Deduper, program: Program) -> None:
    live = deduper.dedup([program.pid])
    # The child checks the digest of everything and tells by its exit status.
    answer = program.ask(
        "exec (lambda os, pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else"
        " os._exit(hashlib.sha256(b''.join(big)).hexdigest() != digest))(*(lambda os: (os, os.fork()))(__import__('os')))"
    )
    assert answer == "0"
    assert live.wait_complete(WAIT_S)
    assert program.ask("check") == "intact"


@pytest.mark.parametrize("lazy", [True, False])
def test_several_sandboxes_at_once(tmp_path: Path, lazy: bool) -> None:
    deduper = Deduper(tmp_path)
    programs = [Program() for _ in range(4)]
    try:
        lives = [deduper.dedup([p.pid]) for p in programs]
        for live in lives:
            live.restore(lazy=lazy)
        for program in programs:
            assert program.ask("check") == "intact"
        assert all(live.wait_complete(WAIT_S) for live in lives)
    finally:
        for program in programs:
            program.__exit__(None, None, None)
        deduper.close()


def test_a_multiprocessing_pool_as_one_sandbox(deduper: Deduper) -> None:
    code = (
        "import multiprocessing, sys, os, hashlib\n"
        "data = [hashlib.sha256(str(i).encode()).hexdigest() * 20 for i in range(2000)]\n"
        "def work(i): return len(data[i]) + i, os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    pool = multiprocessing.get_context('fork').Pool(3)\n"
        "    pool.map(work, range(100))\n"
        "    print('ready', flush=True)\n"
        "    for n, line in enumerate(sys.stdin):\n"
        "        print(n, sum(r for r, _ in pool.map(work, range(1000), 10)), flush=True)\n"
    )
    with Program([sys.executable, "-c", code]) as program:
        before = program.ask("go")
        pids = native.process_tree([program.pid])
        assert len(pids) >= 4
        live = deduper.dedup(pids)
        assert live.evict_result["processes"] == len(pids)
        assert program.ask("go") == before
        assert live.wait_complete(WAIT_S)
        live = deduper.dedup(native.process_tree([program.pid]))
        live.restore(lazy=False)
        assert live.wait_complete(WAIT_S)
        assert program.ask("go") == before


def test_exec_while_pages_are_missing(deduper: Deduper) -> None:
    code = (
        "import os, sys\n"
        "data = bytearray(b'x' * 5_000_000)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "os.execv('/bin/echo', ['echo', '1', 'other program'])\n"
    )
    with Program([sys.executable, "-c", code]) as program:
        live = deduper.dedup([program.pid])
        assert program.ask("go") == "other program"
        program.process.wait()
        with pytest.raises(ProcessGoneError):
            while not live.wait_complete(1.0):
                pass


def test_mlocked_memory_stays_and_is_reported(deduper: Deduper) -> None:
    code = (
        "import ctypes, sys\n"
        "data = bytearray(b'y' * 3_000_000)\n"
        "address = (ctypes.c_char * len(data)).from_buffer(data)\n"
        "assert ctypes.CDLL(None).mlock(address, len(data)) == 0\n"
        "print('ready', flush=True)\n"
        "for n, line in enumerate(sys.stdin):\n"
        "    print(n, data.count(b'y'), flush=True)\n"
    )
    with Program([sys.executable, "-c", code]) as program:
        live = deduper.dedup([program.pid])
        assert native.private_bytes([program.pid]) >= 3_000_000
        assert any("mlocked" in note for note in live.notes)
        assert program.ask("?") == "3000000"


def test_subprocess_module_is_left_alone() -> None:
    """The driver waits for its own threads' stops only: a plain child can still be reaped."""
    assert subprocess.run([sys.executable, "-c", "pass"], check=False).returncode == 0


HUGE_PROGRAM = """
import hashlib, mmap, sys
area = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(14)  # MADV_HUGEPAGE
area[:] = b"".join(hashlib.sha256(str(i).encode()).digest() * 8 for i in range(65536))
digest = hashlib.sha256(area).hexdigest()
print("ready", flush=True)
for line in sys.stdin:
    print("1", "intact" if hashlib.sha256(area).hexdigest() == digest else "BROKEN", flush=True)
"""


def _huge_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("AnonHugePages:")[2].split()[0])


def test_huge_pages_are_huge_again_after_a_restore(deduper: Deduper) -> None:
    with Program([sys.executable, "-c", HUGE_PROGRAM]) as program:
        before = _huge_kib(program.pid)
        if before == 0:
            pytest.skip("the kernel gives no huge pages to those who ask (transparent_hugepage=never)")
        live = deduper.dedup([program.pid])
        assert _huge_kib(program.pid) == 0
        live.restore(lazy=False)
        assert live.wait_complete(WAIT_S)
        deadline_s = time.monotonic() + WAIT_S
        while _huge_kib(program.pid) < before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert _huge_kib(program.pid) == before
        assert program.ask("check") == "intact"
