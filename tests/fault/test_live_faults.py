"""The agent is killed at every named point of the dedup op and the restore op: nothing is ever lost."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medes import native
from medes.errors import CorruptError, LostError
from tests.support.live import Program

pytestmark = pytest.mark.live
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0

EVICT_POINTS = [
    "evict.begin",
    "evict.stopped",
    "inject.registers",
    "inject.mask",
    "inject.entered",
    "inject.returned",
    "inject.noted",
    "inject.stop_waits",
    "inject.changed",
    "inject.stop_taken_back",
    "area.mapped",
    "area.own",
    "area.ready",
    "evict.uffd",
    "anonymous.mapped",
    "anonymous.copied",
    "anonymous.protected",
    "anonymous.moved_one",
    "evict.marked",
    "evict.registered",
    "evict.discarding",
    "evict.discarded_one",
    "evict.discarded",
    "inject.stopped",
    "inject.mask_back",
    "inject.registers_back",
    "evict.evicted",
    "evict.before_release",
    "evict.released",
]
RESTORE_POINTS = [
    "restore.prefetched",
    "restore.fault",
    "restore.rebuilt",
    "restore.place",
    "restore.unregister",
]
RECLAIM_POINTS = [  # test_live_reclaim.py
    "reclaim.begin",
    "reclaim.stopped",
    "reclaim.marked",
    "reclaim.taken",
    "reclaim.done",
    "reclaim.released",
]
# What the program did to its mappings is read, applied and committed.
EVENT_POINTS = ["restore.read", "restore.applying", "restore.applied", "restore.committed"]
CHILD_POINT = "restore.child_kept"
MOVED_POINT = "evict.moved"  # of a program that may have pinned memory: test_live_uring.py
FILL = "globals().update(m=__import__('mmap').mmap(-1, 1 << 20, flags=0x22)) or m.write(b'medes!' * 170000)"
MOVE = "m.resize(1 << 27)"  # mremap: too large for its place
DIGEST = "hashlib.sha256(m[:1020000]).hexdigest()"


def kill_at(point: str, pid: int, folder: Path, until: str, program: Program | None = None) -> None:
    """Runs the small agent until it dies at `point`."""
    agent = subprocess.Popen(
        [sys.executable, "-m", "tests.fault.live_victim", str(pid), str(folder), until],
        cwd=ROOT,
        env={**os.environ, "MEDES_FAULT": point},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    if program is not None:
        assert agent.stdout.readline() == "dormant\n"
        program.tell("check")
    assert agent.wait(WAIT_S) == -signal.SIGKILL, f"{point} was not reached"
    agent.stdout.close()


def adopt(folder: Path) -> tuple[native.FaultServer, native.LiveSandbox | None]:
    """What a restarted agent does: takes over what the dead one left."""
    server = native.FaultServer(2)
    files = list(folder.glob("sandbox-*.medes"))
    if not files:
        return server, None
    bases = native.BaseSet()
    bases.add_local(native.Slab.open(str(folder / "base.slab")))
    return server, server.adopt(native.SandboxFile.open(str(files[0])), bases)


def check_intact(program: Program, requests: int) -> None:
    for number in range(requests, requests + 3):
        program.tell("check")
        assert program.hear() == f"{number} intact"
    status = Path(f"/proc/{program.pid}/status").read_text()
    blocked = re.search(r"SigBlk:\s*(\w+)", status)
    assert blocked is not None and int(blocked[1], 16) == 0, "the signal mask was not given back"


@pytest.mark.parametrize("point", EVICT_POINTS)
def test_killed_in_the_dedup_op(point: str, tmp_path: Path) -> None:
    with Program() as program:
        assert program.ask("check") == "intact"
        kill_at(point, program.pid, tmp_path, "evict")
        time.sleep(0.05)  # the sandbox may well touch its memory before anyone serves it
        server, live = adopt(tmp_path)
        assert live is not None
        check_intact(program, 2)
        live.restore()
        assert live.wait_complete(WAIT_S)
        check_intact(program, 5)
        server.close()


@pytest.mark.parametrize("point", RESTORE_POINTS)
def test_killed_in_the_restore_op(point: str, tmp_path: Path) -> None:
    with Program() as program:
        kill_at(point, program.pid, tmp_path, "restore", program if point == "restore.fault" else None)
        server, live = adopt(tmp_path)
        assert live is not None
        if point == "restore.fault":
            assert program.hear() == "1 intact"
        check_intact(program, 2 if point == "restore.fault" else 1)
        live.restore()
        assert live.wait_complete(WAIT_S)
        server.close()


def test_killed_again_and_again(tmp_path: Path) -> None:
    """One sandbox, many agents, each killed somewhere else."""
    with Program() as program:
        requests = 0
        for n, point in enumerate(["evict.discarded_one", "evict.released", "inject.entered"]):
            folder = tmp_path / str(n)
            folder.mkdir(0o700)
            kill_at(point, program.pid, folder, "evict")
            server, live = adopt(folder)
            assert live is not None
            live.restore(lazy=False)
            assert live.wait_complete(WAIT_S)
            check_intact(program, requests + 1)
            requests += 3
            server.close()


def _victim(program: Program, folder: Path, point: str = "") -> subprocess.Popen[str]:
    """The small agent with a slow restore under way."""
    agent = subprocess.Popen(
        [sys.executable, "-m", "tests.fault.live_victim", str(program.pid), str(folder), "linger"],
        cwd=ROOT,
        env={**os.environ, "MEDES_FAULT": point},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    assert [agent.stdout.readline(), agent.stdout.readline()] == ["dormant\n", "restoring\n"]
    return agent


def test_memory_that_moved_before_the_kill_is_found(tmp_path: Path) -> None:
    with Program() as program:
        program.ask("exec " + FILL)
        digest = program.ask("exec " + DIGEST)
        with _victim(program, tmp_path) as agent:
            program.ask("exec " + MOVE)
            agent.kill()
        server, live = adopt(tmp_path)
        assert live is not None
        assert live.evict_result["evicted_pages"] > 256, "the restore was over before the kill"
        assert program.ask("exec " + DIGEST) == digest
        live.restore()
        assert live.wait_complete(WAIT_S)
        assert program.ask("exec " + DIGEST) == digest
        server.close()


@pytest.mark.parametrize("point", EVENT_POINTS)
def test_killed_while_mappings_change(point: str, tmp_path: Path) -> None:
    with Program() as program:
        program.ask("exec " + FILL)
        digest = program.ask("exec " + DIGEST)
        with _victim(program, tmp_path, point) as agent:
            program.tell("exec " + MOVE)
            assert agent.wait(WAIT_S) == -signal.SIGKILL
        server, live = adopt(tmp_path)
        assert live is not None
        assert live.evict_result["evicted_pages"] > 256, "the restore was over before the kill"
        program.hear()
        assert program.ask("exec " + DIGEST) == digest
        live.restore()
        assert live.wait_complete(WAIT_S)
        assert program.ask("exec " + DIGEST) == digest
        server.close()


def _fork_and_kill(program: Program, folder: Path, point: str) -> int:
    """The program forks while pages are missing, and the agent dies at `point`. Returns its keeper's pid."""
    with _victim(program, folder, point) as agent:
        keeper = _keeper_of(agent.pid)
        program.tell("exec fork()")
        assert agent.wait(WAIT_S) == -signal.SIGKILL
    return keeper


def _keeper_of(agent: int) -> int:
    for task in Path(f"/proc/{agent}/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            if Path(f"/proc/{pid}/comm").read_text() == "medes-keeper\n":
                return pid
    raise AssertionError("the agent has no keeper")


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while not _gone(pid):
        assert time.monotonic() < deadline, f"process {pid} stays"
        time.sleep(0.01)


@pytest.mark.parametrize("point", [*EVENT_POINTS, CHILD_POINT])
def test_a_child_forked_while_pages_are_missing_outlives_the_agent(point: str, tmp_path: Path) -> None:
    with Program() as program:
        keeper = _fork_and_kill(program, tmp_path, point)
        if point not in ("restore.read", "restore.applying"):
            assert len(list(tmp_path.glob("*.child-*"))) == 1
        time.sleep(0.05)  # the child may well read its memory before anyone serves it
        assert not _gone(keeper), "nobody holds the child's userfaultfd"
        server, live = adopt(tmp_path)
        assert live is not None
        assert program.hear() == "1 forked"
        assert program.ask("exec reap()") == "intact"
        live.restore()
        assert live.wait_complete(WAIT_S)
        assert program.ask("check") == "intact"
        assert not list(tmp_path.glob("*.child-*"))
        _wait_until_gone(keeper)
        server.close()


def test_a_forked_child_outlives_agent_after_agent(tmp_path: Path) -> None:
    with Program() as program:
        keeper = _fork_and_kill(program, tmp_path, "restore.committed")
        for _ in range(5):
            server, live = adopt(tmp_path)
            server.close()  # most likely before the child's pages are in
        _wait_until_gone(keeper)
        server, live = adopt(tmp_path)
        assert live is not None
        assert [program.hear(), program.ask("exec reap()"), program.ask("check")] == [
            "1 forked",
            "intact",
            "intact",
        ]
        live.restore()
        assert live.wait_complete(WAIT_S)
        server.close()


def test_a_child_outlives_an_agent_that_fails_to_take_over(tmp_path: Path) -> None:
    with Program() as program:
        keeper = _fork_and_kill(program, tmp_path, "restore.read")
        (file,) = tmp_path.glob("sandbox-*.medes")
        damaged = file.with_name(f"{file.name}.child-1")
        damaged.write_bytes(b"damaged")
        with pytest.raises(CorruptError):
            adopt(tmp_path)
        gc.collect()  # what it had of the sandbox is dropped
        _wait_until_gone(keeper)
        damaged.unlink()
        server, live = adopt(tmp_path)
        assert live is not None
        assert program.hear() == "1 forked"
        assert program.ask("exec os.wait()[1]") == "0"
        assert program.ask("exec os.read(child[0], 64)") == "b'intact'"
        live.restore()
        assert live.wait_complete(WAIT_S)
        assert not list(tmp_path.glob("*.child-*"))
        server.close()


def test_a_keeper_ends_with_the_agent_and_the_memory_it_kept(tmp_path: Path) -> None:
    with Program() as program:
        with _victim(program, tmp_path) as agent:
            keeper = _keeper_of(agent.pid)
            agent.kill()
        assert not _gone(keeper)  # the program may close its own copy
    _wait_until_gone(keeper)
    (tmp_path / "again").mkdir(0o700)
    with Program() as program:
        keeper = _fork_and_kill(program, tmp_path / "again", "restore.committed")
        subprocess.run(["pkill", "-KILL", "-P", str(program.pid)], check=True)
    _wait_until_gone(keeper)


CLOSER = """
import ctypes, hashlib, sys
big = [hashlib.sha256(str(i).encode()).digest() * 64 for i in range(4000)]
digest = hashlib.sha256(b"".join(big)).hexdigest()
libc = ctypes.CDLL(None)
print("ready", flush=True)
sys.stdin.readline()
libc.syscall(436, 3, ctypes.c_uint(0xFFFFFFFF), 0)  # close_range
print("closed", flush=True)
sys.stdin.readline()
print("intact" if hashlib.sha256(b"".join(big)).hexdigest() == digest else "BROKEN", flush=True)
sys.stdin.readline()
"""


def test_a_program_that_closes_all_descriptors_outlives_agent_after_agent(tmp_path: Path) -> None:
    with Program([sys.executable, "-c", CLOSER]) as program:
        with _victim(program, tmp_path) as agent:
            keeper = _keeper_of(agent.pid)
            program.tell("close")
            assert program.hear() == "closed"
            agent.kill()
        program.tell("check")  # it waits: the keeper has the other copy
        for _ in range(3):
            server, live = adopt(tmp_path)
            server.close()
        _wait_until_gone(keeper)
        server, live = adopt(tmp_path)
        assert live is not None
        assert program.hear() == "intact"
        live.restore()
        assert live.wait_complete(WAIT_S)
        server.close()


def test_a_program_whose_userfaultfd_is_nowhere_any_more_is_lost(tmp_path: Path) -> None:
    with Program([sys.executable, "-c", CLOSER]) as program:
        with _victim(program, tmp_path) as agent:
            keeper = _keeper_of(agent.pid)
            program.tell("close")
            assert program.hear() == "closed"
            os.kill(program.pid, signal.SIGSTOP)  # so that it does not run into the zeros
            agent.kill()
        os.kill(keeper, signal.SIGKILL)
        _wait_until_gone(keeper)
        with pytest.raises(LostError, match="closed its userfaultfd"):
            adopt(tmp_path)


def test_a_child_whose_keeper_was_killed_too_makes_the_sandbox_lost(tmp_path: Path) -> None:
    with Program() as program:
        keeper = _fork_and_kill(program, tmp_path, "restore.committed")
        (child,) = subprocess.check_output(["pgrep", "-P", str(program.pid)], text=True).split()
        os.kill(int(child), signal.SIGSTOP)  # so that it is there to be asked about
        os.kill(keeper, signal.SIGKILL)
        _wait_until_gone(keeper)
        with pytest.raises(LostError):
            adopt(tmp_path)
        os.kill(int(child), signal.SIGKILL)


def test_every_point_of_the_source_is_killed_once() -> None:
    found = set()
    for source in (ROOT / "native").rglob("*.cc"):
        if source.parent.name in ("tracing", "serving", "process", "restore"):
            found |= set(re.findall(r'fault_point\("([\w.]+)"\)', source.read_text()))
    assert found == {*EVICT_POINTS, *RESTORE_POINTS, *RECLAIM_POINTS, *EVENT_POINTS, CHILD_POINT, MOVED_POINT}
