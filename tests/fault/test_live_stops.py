"""Stops that a program must not notice, whatever it is doing; and stops that cannot be had."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from medes import native
from medes.errors import BusyError, MedesError, UnsupportedError
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster
from tests.support.freezer import Freezer
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0
KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
SOURCE = Path(__file__).with_name("stops.c")
BLOCKED = ["epoll", "epoll-spec", "sigtimedwait", "sigwait", "ppoll", "poll", "select", "uring", "uring-time"]


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stops") / "stops"
    subprocess.run(["cc", "-O1", "-pthread", "-o", str(path), str(SOURCE)], check=True)
    return str(path)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def sleeps(pid: int) -> bool:
    """All its threads wait in the kernel."""
    return all(
        (task / "stat").read_text().rpartition(")")[2].split()[0] == "S"
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


@pytest.mark.parametrize("how", BLOCKED)
def test_a_blocked_main_thread_neither_wakes_nor_wakes_the_sandbox(
    stops: str, how: str, deduper: Deduper
) -> None:
    with Program([stops, how]) as program:
        for _ in range(3):
            until(lambda: sleeps(program.pid))
            live = deduper.dedup([program.pid])
            until(lambda: sleeps(program.pid))
            assert live.state == "dormant"
            live.restore(lazy=False)
            assert live.wait_complete(WAIT_S)
            program.tell("check")
            assert program.hear() == "ok"  # and not "woke"


def test_no_wait_ends_because_other_threads_change_mappings(deduper: Deduper, tmp_path: Path) -> None:
    """All are told to stop for each set of events; with so many of them some get there long after it was read, and
    children end meanwhile."""
    path = tmp_path / "waiters"
    source = SOURCE.with_name("waiters.c")
    subprocess.run(["cc", "-O1", "-pthread", "-o", str(path), str(source)], check=True)
    heard = []
    for _ in range(3):
        with Program([str(path)]) as program:
            until(lambda pid=program.pid: sleeps(pid))
            live = deduper.dedup([program.pid])
            program.tell("churn")
            heard.append(program.hear())
            assert live.wait_complete(WAIT_S)
    assert heard == ["ok"] * 3


@pytest.mark.skipif(KERNEL < (6, 4), reason="the kernel does not tell of syscall user dispatch")
def test_calls_that_go_to_the_program_are_not_injected(deduper: Deduper, tmp_path: Path) -> None:
    """The kernel would make a SIGSYS of them, and take the program's handler for it away, as it is blocked then."""
    path = tmp_path / "dispatch"
    subprocess.run(["cc", "-O1", "-o", str(path), str(SOURCE.with_name("dispatch.c"))], check=True)
    with Program([str(path)]) as program:
        stat = Path(f"/proc/{program.pid}/stat")
        until(lambda: int(stat.read_text().rpartition(")")[2].split()[11]) > 1)  # it computes
        with pytest.raises(BusyError, match="syscall user dispatch"):
            deduper.dedup([program.pid])
        os.kill(program.pid, signal.SIGUSR1)
        assert program.hear() == "0 before, 1 after"
        until(lambda: sleeps(program.pid))
        live = deduper.dedup([program.pid])
        program.tell("check")
        assert program.hear() == "ok"
        assert live.wait_complete(WAIT_S)


@pytest.mark.parametrize("how", ["fiber", "altstack", "frame"])
def test_no_byte_of_a_suspended_or_deep_stack_changes(stops: str, how: str, deduper: Deduper) -> None:
    with Program([stops, how]) as program:
        for _ in range(3):
            live = deduper.dedup([program.pid])
            program.tell("check")
            assert program.hear() == "ok"
            assert live.wait_complete(WAIT_S)
        program.tell("on")
        assert program.hear() == "ok"
        program.tell("check")  # now its frame, too
        assert program.hear() == "ok"


def test_a_main_thread_that_ends_is_not_the_end(stops: str, deduper: Deduper) -> None:
    with Program([stops, "leader"]) as program:
        live = deduper.dedup([program.pid])
        program.tell("on")  # wakes it, and the main thread ends while pages are out
        assert program.hear() == "ok"
        assert live.wait_complete(WAIT_S)
        until(lambda: Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert native.is_alive(program.pid)
        with pytest.raises(UnsupportedError, match="main thread has exited"):
            deduper.dedup([program.pid])
        program.tell("check")
        assert program.hear() == "ok"


def test_a_sandbox_whose_main_thread_has_exited_is_taken_back(
    stops: str, deduper: Deduper, tmp_path: Path
) -> None:
    with Program([stops, "leader-quiet"]) as program:
        until(lambda: sleeps(program.pid))
        live = deduper.dedup([program.pid])
        assert live.state == "dormant"
        deduper.close()
        os.kill(program.pid, signal.SIGUSR1)
        until(lambda: Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        server = native.FaultServer(2)
        file = native.SandboxFile.open(str(tmp_path / "sandbox-1.medes"))
        live = server.adopt(file, deduper.bases())
        assert live.state == "dormant"
        assert live.needed
        program.tell("check")
        assert program.hear() == "ok"
        live.restore(lazy=False)
        assert live.wait_complete(WAIT_S)
        assert not live.needed
        program.tell("check")
        assert program.hear() == "ok"
        server.close()


# --- freezers --------------------------------------------------------------------------------------------


def test_a_frozen_sandbox_is_busy_by_name_and_others_go_on(
    freezer: Freezer, stops: str, deduper: Deduper
) -> None:
    with Program([stops, "select"]) as program, Program([stops, "poll"]) as other:
        freezer.add(program.pid)
        freezer.set(True)
        with pytest.raises(BusyError, match=r"its cgroup /.* is frozen"):
            deduper.dedup([program.pid])
        live = deduper.dedup([other.pid])
        assert live.state == "dormant"
        freezer.set(False)
        program.tell("check")
        assert program.hear() == "ok"
        assert deduper.dedup([program.pid]).evict_result["evicted_pages"] > 0
        for each in (program, other):
            each.tell("check")
            assert each.hear() == "ok"


def _dedup_into(outcome: list[object], agent: AgentProcess) -> None:
    try:
        with agent.client() as client:
            outcome.append(client.dedup("a"))
    except MedesError as error:
        outcome.append(error)


def test_frozen_at_random_moments(freezer: Freezer, stops: str, make_cluster: Callable[..., Cluster]) -> None:
    """In the middle of the op: its caller is answered while the sandbox is frozen, and after the thaw the sandbox is whole.
    Where a v1 freezer catches it as an injected call begins the op itself goes on until then (test_held_ops.py)."""
    choose = random.Random(int(os.environ.get("MEDES_SEED", "7")))
    agent = make_cluster(nodes=1, controller=False).agents[0]
    with (
        Program([stops, "select"]) as program,
        agent.client() as client,
    ):  # a freezer alone does not disturb it
        freezer.add(program.pid)
        client.register("stops", pids=[program.pid], sandbox_id="a")
        for _ in range(12):
            outcome: list[object] = []
            thread = threading.Thread(target=_dedup_into, args=(outcome, agent))
            thread.start()
            time.sleep(choose.random() * 0.06)
            freezer.set(True)
            thread.join(WAIT_S)  # not thawed before
            answered = list(outcome)
            freezer.set(False)
            thread.join(WAIT_S)
            assert answered, "an op without an end"
            if isinstance(answered[0], MedesError):
                assert isinstance(answered[0], BusyError), answered[0]
                assert "is frozen" in str(answered[0])
            program.tell("check")
            assert program.hear() == "ok"
            until(lambda: client.get("a").state in (S.WARM, S.DEDUP))
            client.restore("a", eager=True)


# --- held frozen -----------------------------------------------------------------------------------------
APP = """
heap = bytes(range(256)) * 40000
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"x"]
"""


def test_a_parent_held_longer_than_its_patience_keeps_its_children(deduper: Deduper, tmp_path: Path) -> None:
    """gunicorn kills workers that have given no sign of life for its timeout: those that stood still give one first."""
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(APP)
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-w",
        "3",
        "-t",
        "2",
        "-b",
        f"unix:{tmp_path}/socket",
        "app:app",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as parent:
        try:
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
            until(lambda: len(children.read_text().split()) == 3 and (tmp_path / "socket").exists())
            until(lambda: all(sleeps(int(pid)) for pid in [parent.pid, *children.read_text().split()]))
            before = children.read_text()
            live = deduper.dedup(native.process_tree([parent.pid]), hold_frozen=True)
            time.sleep(3.0)  # that is the shape
            live.restore(lazy=False)
            assert live.wait_complete(WAIT_S)
            time.sleep(1.5)  # the parent looks once a second
            assert children.read_text() == before
        finally:
            parent.terminate()


def test_more_timed_waits_at_once_than_there_are_slots_for(deduper: Deduper, tmp_path: Path) -> None:
    """Of seventeen kinds of call, more than an injection area has room for: none ends early or with another result."""
    binary = tmp_path / "waits"
    source = Path(__file__).with_name("waits.c")
    subprocess.run(["cc", "-O1", "-pthread", "-o", str(binary), str(source)], check=True)
    with Program([str(binary), "700", "6000"]) as program:
        stopped = 0
        for _ in range(3):
            with suppress(BusyError):
                live = deduper.dedup([program.pid])
                stopped += 1
                live.restore(lazy=False)
                assert live.wait_complete(WAIT_S)
        assert program.hear() == "early 0 wrong 0 changed 0"
        assert stopped > 0
