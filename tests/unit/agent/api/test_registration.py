"""What cannot be a sandbox, and what a cgroup may be called."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medes.agent.api.registration import Registration, checked_spec
from medes.agent.sandboxes.sandbox import SandboxSpec
from medes.chance import Chance
from medes.config import AgentSettings
from medes.drivers.image import ImageDriver
from medes.drivers.process import cgroups, subjects
from medes.drivers.process.processes import ancestors, refuse_own
from medes.drivers.process.subject import ProcessSubject
from medes.drivers.registry import Drivers
from medes.errors import InvalidArgumentError, LimitExceededError, MedesError, NotFoundError
from tests.support.counter_app import App
from tests.support.memory_cgroup import MemoryCgroup, memory_cgroup

MakeApp = Callable[..., App]


def made_of(**fields: object) -> tuple[SandboxSpec, ProcessSubject]:
    drivers = Drivers({"image": ImageDriver()}, {})
    spec, subject = checked_spec(
        AgentSettings(driver="image"), drivers, Registration(function="f", **fields), Chance()
    )
    assert isinstance(subject, ProcessSubject)
    return spec, subject


def spec_of(**fields: object) -> SandboxSpec:
    return made_of(**fields)[0]


def subject_of(**fields: object) -> ProcessSubject:
    return made_of(**fields)[1]


def test_bounds_come_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*arguments: object) -> int:
        raise AssertionError("looked at a process")

    monkeypatch.setattr(subjects, "start_time", work)
    monkeypatch.setattr(cgroups, "resolve", work)
    for fields in (
        {"pids": tuple(range(2, 100_002))},
        {"pids": (5, 5)},
        {"pids": (5,), "hook_address": "x" * 200},
        {"pids": (5,), "sandbox_id": "x" * 10_000},
        {"pids": (5,), "driver": "nothing"},
    ):
        with pytest.raises(MedesError):
            spec_of(**fields)
    with pytest.raises(LimitExceededError, match="100000 pids; a sandbox has at most 4096"):
        spec_of(pids=tuple(range(2, 100_002)))


# --- processes ---------------------------------------------------------------------------------------------
def test_the_agent_and_its_ancestors_are_refused() -> None:
    own = ancestors(os.getpid())
    assert own[:2] == [os.getpid(), os.getppid()]
    for pid, why in (
        (os.getpid(), "the agent itself"),
        (1, "init"),
        (own[1], "an ancestor of the agent" if own[1] != 1 else "init"),  # of a session that lost its shell
    ):
        with pytest.raises(InvalidArgumentError, match=f"pid {pid}: this is {why}"):
            spec_of(pids=(pid,))


NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode())
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def named() -> Iterator[Callable[[str], int]]:
    """A process of that name."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> int:
        command = [sys.executable, "-c", NAMED, name]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "ready\n"
        return started[-1].pid

    yield start
    for process in started:
        process.communicate()


def test_a_keeper_is_refused_and_a_child_of_the_agent_is_not(named: Callable[[str], int]) -> None:
    with pytest.raises(InvalidArgumentError, match="an agent's keeper"):
        spec_of(pids=(named("medes-keeper"),))
    assert spec_of(pids=(named("medes-worker"),)).driver == "image"


def test_a_thread_is_no_process(make_app: MakeApp) -> None:
    stop = threading.Event()
    found: list[int] = []

    def work() -> None:
        found.append(ctypes.CDLL(None).gettid())
        stop.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not found:
            pass
        with pytest.raises(InvalidArgumentError, match=f"a thread of process {os.getpid()}"):
            refuse_own(found)
    finally:
        stop.set()
        thread.join()


def test_kernel_threads_are_refused() -> None:
    threads = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and _of_kernel(p)]
    if not threads:
        pytest.skip("this PID namespace shows no kernel thread")
    with pytest.raises(InvalidArgumentError, match="a kernel thread"):
        refuse_own(threads[:1])


def _of_kernel(process: Path) -> bool:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[6]) & 0x200000 != 0
    except OSError:
        return False


# --- cgroups -----------------------------------------------------------------------------------------------
@pytest.fixture
def group(make_app: MakeApp) -> Iterator[tuple[MemoryCgroup, App]]:
    app = make_app()
    with memory_cgroup() as made:
        made.add(app.pid)
        yield made, app
        made.folder.parent.joinpath("cgroup.procs").write_text(str(app.pid))


def test_what_proc_and_engines_print_names_the_folder(group: tuple[MemoryCgroup, App]) -> None:
    made, app = group
    printed = Path(f"/proc/{app.pid}/cgroup").read_text()
    line = next(line for line in printed.splitlines() if line.endswith(made.folder.name))
    path = line.split(":", 2)[2]
    for text in (
        str(made.folder),
        f"{made.folder}/",
        line,
        printed,
        path,
        path.lstrip("/"),
        made.folder.name,
    ):
        assert cgroups.resolve(text) == str(made.folder), text
    assert subject_of(cgroup=line).cgroup == str(made.folder)


def test_what_names_no_cgroup(group: tuple[MemoryCgroup, App]) -> None:
    made, _ = group
    with pytest.raises(NotFoundError, match=made.folder.name):  # what may have been meant
        cgroups.resolve(made.folder.name[:-3])
    for text in ("/no/such/group", "0::/no/such/group", "system.slice:docker:nothing", "../../nothing"):
        with pytest.raises(NotFoundError, match="no such cgroup"):
            cgroups.resolve(text)
    for text in ("/", "0::/", "../../.."):
        with pytest.raises(InvalidArgumentError, match="the root"):
            cgroups.resolve(text)
    for text in ("", " ", "a\0b"):
        with pytest.raises(InvalidArgumentError):
            cgroups.resolve(text)
    with pytest.raises(LimitExceededError):
        cgroups.resolve("c" * 10_000)


def test_a_cgroup_without_processes() -> None:
    with memory_cgroup() as empty, pytest.raises(NotFoundError, match="no process in this cgroup"):
        cgroups.resolve(str(empty.folder))


def test_a_cgroup_with_the_agent_in_it_is_refused(group: tuple[MemoryCgroup, App]) -> None:
    made, _ = group
    subject = subject_of(cgroup=str(made.folder), sandbox_id="s")
    home = made.folder.parent / "cgroup.procs"
    made.add(os.getpid())
    try:
        with pytest.raises(InvalidArgumentError, match="the agent itself"):
            spec_of(cgroup=str(made.folder))
        with pytest.raises(InvalidArgumentError, match="the agent itself is in this sandbox"):
            subject.members()  # it came in later
    finally:
        home.write_text(str(os.getpid()))


def test_systemds_names_of_runc() -> None:
    path = cgroups._systemd_path("user-1000.slice", "libpod", "abc")
    assert path == "user.slice/user-1000.slice/libpod-abc.scope"
    assert cgroups._systemd_path("", "runc", "x.slice") == "system.slice/x.slice"
