"""A sandbox that does its worst beside one that behaves: the agent lives, answers with errors of the catalogue and loses
nothing of its own; the neighbour's memory is right all the time."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medes.client import MedesClient
from medes.errors import BusyError, InternalError, MedesError
from tests.support.cluster import AgentProcess
from tests.support.counter_app import App

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="the hostile one is another user: needs root"),
]

HOSTILE = 61_004
SECONDS = float(os.environ.get("HOSTILE_SECONDS", "3"))
OP_TIMEOUT_S = 60.0
MODES = (
    "userfaultfd",
    "mappings",
    "fork",
    "forge",
    "namespaces",
    "trace",
    "deaf",
    "queues",
    "change",
    "vfork",
    "rings",
    "leave",
    "become",
)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the hostile program with")
    folder = Path(f"/tmp/medes-hostile-{os.getpid()}")  # where other users get to
    folder.mkdir(mode=0o755)
    program = folder / "hostile"
    sources = [str(Path(__file__).with_name(name)) for name in ("hostile.c", "hostile_rings.c")]
    subprocess.run([compiler, "-O1", "-pthread", "-o", str(program), *sources], check=True)
    yield program
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    process = AgentProcess(tmp_path_factory.mktemp("agent"), "n0", "")
    process.set(restores_concurrent_max=4, restore_queue_deadline_ms=20_000)
    process.start()
    yield process
    process.clean()


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
    resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000))
    os.setgroups([])
    os.setgid(HOSTILE)
    os.setuid(HOSTILE)


@contextlib.contextmanager
def hostile(binary: Path, mode: str) -> Iterator[int]:
    process = subprocess.Popen(
        [str(binary), mode], stdout=subprocess.PIPE, preexec_fn=limit, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            for _ in range(50):  # what was forked under the signal needs another one
                os.killpg(process.pid, signal.SIGKILL)
                time.sleep(0.01)
        process.wait()
        process.stdout.close()


def descriptors(agent: AgentProcess) -> int:
    assert agent.process is not None
    return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))


def own_bytes(agent: AgentProcess) -> int:
    """Memory of the agent without what lies in shared memory."""
    assert agent.process is not None
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{agent.process.pid}/status").read_text().splitlines()
    )
    return (int(fields["RssAnon"].split()[0]) + int(fields["RssFile"].split()[0])) << 10


class Neighbour:
    """A sandbox that behaves, dedup'd and restored again and again, asked in between."""

    def __init__(self, agent: AgentProcess, app: App, name: str) -> None:
        self._agent, self._app, self._name = agent, app, name
        self.dedup_ms: list[float] = []
        self.restore_ms: list[float] = []

    def run(self, end: Callable[[], bool]) -> None:
        with MedesClient(self._agent.address, timeout_s=OP_TIMEOUT_S) as client:
            while True:
                begin_s = time.monotonic()
                client.dedup(self._name)
                self.dedup_ms.append((time.monotonic() - begin_s) * 1e3)
                self._app.ask()  # checks what it finds in its memory
                begin_s = time.monotonic()
                client.restore(self._name, eager=True)
                self.restore_ms.append((time.monotonic() - begin_s) * 1e3)
                self._app.ask()
                if end():
                    return

    def figures(self) -> str:
        return ", ".join(
            f"{what} {statistics.median(values):.0f}/{max(values):.0f} ms"
            for what, values in (("dedup", self.dedup_ms), ("restore", self.restore_ms))
        )


def attack(agent: AgentProcess, pid: int, name: str, end_s: float, **register: object) -> set[str]:
    """Ops on the hostile sandbox until then; how they ended."""
    seen: set[str] = set()
    with MedesClient(agent.address, timeout_s=OP_TIMEOUT_S) as client:

        def done(call: Callable[[], object]) -> None:
            try:
                call()
                seen.add("ok")
            except InternalError:
                raise
            except MedesError as error:
                seen.add(error.code)

        done(lambda: client.register("hostile", pids=[pid], sandbox_id=name, purge_kills=True, **register))  # type: ignore[arg-type]
        while time.monotonic() < end_s:
            done(lambda: client.dedup(name, timeout_s=OP_TIMEOUT_S))
            done(lambda: client.restore(name, eager=True, timeout_s=OP_TIMEOUT_S))
        done(lambda: client.purge(name))
    return seen


def beside(agent: AgentProcess, pid: int, name: str, **register: object) -> tuple[Neighbour, set[str]]:
    with App(seed=7) as app:
        with agent.client() as client:
            client.register("neighbour", pids=[app.pid], sandbox_id=f"beside-{name}")
        neighbour = Neighbour(agent, app, f"beside-{name}")
        end_s = time.monotonic() + SECONDS
        failed: list[BaseException] = []

        def run() -> None:
            try:
                neighbour.run(lambda: time.monotonic() >= end_s)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            seen = attack(agent, pid, name, end_s, **register)
        finally:
            thread.join()
        if failed:
            raise failed[0]
        with agent.client() as client:
            client.purge(f"beside-{name}")
    return neighbour, seen


def check_agent(agent: AgentProcess, before: int) -> None:
    """It serves, has every slot free, and no descriptor more than before."""
    assert agent.process is not None and agent.process.poll() is None, agent.log_tail()
    deadline = time.monotonic() + 20
    while descriptors(agent) > before + 8 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert descriptors(agent) <= before + 8
    with agent.client() as client:
        assert client.list() == []
    for n in range(5):  # one more than there are slots
        with App(seed=n) as app, agent.client() as client:
            client.register("after", pids=[app.pid], sandbox_id=f"after-{n}")
            client.dedup(f"after-{n}")
            with contextlib.suppress(BusyError):
                client.restore(f"after-{n}", eager=True)
                assert client.get(f"after-{n}").state.label == "warm"
            app.ask()
            client.purge(f"after-{n}")
    assert "Traceback" not in agent.log.read_text(errors="replace")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.timeout(300)
def test_it_harms_nobody_else(
    agent: AgentProcess, binary: Path, mode: str, record_property: Callable[[str, object], None]
) -> None:
    with App(seed=3) as app, agent.client() as client:  # whatever is made once is made
        client.register("first", pids=[app.pid], sandbox_id="first")
        client.dedup("first")
        client.restore("first", eager=True)
        client.purge("first")
    before = descriptors(agent)
    with hostile(binary, mode) as pid:
        neighbour, seen = beside(agent, pid, mode)
    figures = f"{mode}: neighbour {neighbour.figures()}; ops on it ended {', '.join(sorted(seen))}"
    record_property("figures", figures)
    print(figures)
    check_agent(agent, before)


ROUNDS, ROUND_S = 4, 0.5
GROWTH_BYTES_MAX = 24 << 20  # a few sandboxes' worth of freed memory that the allocator keeps, no more


@pytest.mark.timeout(600)
def test_rounds_of_it_leave_nothing_in_the_agent(
    agent: AgentProcess, binary: Path, record_property: Callable[[str, object], None]
) -> None:
    """All of them one after another, again and again: after the second round nothing is new."""
    figures = []
    for n in range(ROUNDS):
        for mode in MODES:
            with hostile(binary, mode) as pid:
                attack(agent, pid, f"{mode}-{n}", time.monotonic() + ROUND_S)
        with agent.client() as client:
            assert client.list() == []
        figures.append((own_bytes(agent), descriptors(agent)))
    text = ", ".join(f"{memory >> 20} MiB and {count} descriptors" for memory, count in figures)
    record_property("figures", text)
    print(f"after each round: {text}")
    (memory, count), (last_memory, last_count) = figures[1], figures[-1]
    assert last_memory - memory <= GROWTH_BYTES_MAX, text
    assert last_count - count <= 8, text


def test_without_it_for_comparison(
    agent: AgentProcess, record_property: Callable[[str, object], None]
) -> None:
    with App(seed=7) as app, agent.client() as client:
        client.register("neighbour", pids=[app.pid], sandbox_id="alone")
        neighbour = Neighbour(agent, app, "alone")
        end_s = time.monotonic() + SECONDS
        neighbour.run(lambda: time.monotonic() >= end_s)
        assert neighbour.dedup_ms and neighbour.restore_ms
        record_property("figures", neighbour.figures())
        print(f"alone: {neighbour.figures()}")
        client.purge("alone")


def test_a_hook_that_never_answers_holds_nobody_else(
    agent: AgentProcess, binary: Path, tmp_path: Path
) -> None:
    """It takes connections and sits on them."""
    before = descriptors(agent)
    path = f"/tmp/medes-hook-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener, hostile(binary, "change") as pid:
        listener.bind(path)
        listener.listen()
        try:
            neighbour, seen = beside(agent, pid, "silent-hook", hook_address=path)
        finally:
            Path(path).unlink()
    assert len(neighbour.dedup_ms) >= 1 and seen
    print(f"silent hook: neighbour {neighbour.figures()}; ops on it ended {', '.join(sorted(seen))}")
    check_agent(agent, before)
