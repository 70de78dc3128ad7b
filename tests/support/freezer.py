"""Cgroups that can be frozen, of both hierarchies, and an agent that is caught in the middle of an injected call."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WAIT_S = 30.0
ROOTS = {"v2": ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"), "v1": ("/sys/fs/cgroup/freezer",)}
FILES = {"v2": "cgroup.freeze", "v1": "freezer.state"}


class Freezer:
    """A cgroup that can be frozen; v2 or v1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unified = (folder / "cgroup.freeze").exists()

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def set(self, frozen: bool) -> None:
        if self.unified:
            (self.folder / "cgroup.freeze").write_text("1" if frozen else "0")
        else:
            (self.folder / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def freeze(self) -> None:
        """Until all in it are; of v1."""
        self.set(True)
        deadline = time.monotonic() + WAIT_S
        while (self.folder / "freezer.state").read_text() != "FROZEN\n":
            assert time.monotonic() < deadline
            time.sleep(0.005)


@contextmanager
def freezer_of(version: str) -> Iterator[Freezer]:
    """Skips the test where no such cgroup can be made. What is in it at the end is thawed and goes back to its parent."""
    for root in ROOTS[version]:
        folder = Path(root) / f"medes-test-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if not (folder / FILES[version]).exists():
            folder.rmdir()
            continue
        freezer = Freezer(folder)
        try:
            yield freezer
        finally:
            freezer.set(False)
            _remove(folder)
        return
    pytest.skip("no such cgroup can be made here")


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while folder.exists():
        try:
            for pid in (folder / "cgroup.procs").read_text().split():
                (folder.parent / "cgroup.procs").write_text(pid)
            folder.rmdir()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def stop_in_call(agent_pid: int, sandbox_pid: int, number: int) -> None:
    """Waits until an agent with MEDES_FAULT=stop:inject.changed, a child of ours, has stopped with a thread of the sandbox
    at the entry of that injected system call; lets it pass others."""
    deadline = time.monotonic() + WAIT_S
    while True:
        while os.waitid(os.P_PID, agent_pid, os.WSTOPPED | os.WNOHANG) is None:
            assert time.monotonic() < deadline, "no such call was made"
            time.sleep(0.002)
        for task in Path(f"/proc/{sandbox_pid}/task").iterdir():
            if (task / "syscall").read_text().split()[0] == str(number) and _is_traced(task):
                return
        os.kill(agent_pid, signal.SIGCONT)


def _is_traced(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "t"


@contextmanager
def passing_on(agent_pid: int) -> Iterator[None]:
    """Continues that agent, and again whenever it stops."""
    end = threading.Event()

    def run() -> None:
        os.kill(agent_pid, signal.SIGCONT)
        while not end.wait(0.005):
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                if os.waitid(os.P_PID, agent_pid, os.WSTOPPED | os.WNOHANG) is not None:
                    os.kill(agent_pid, signal.SIGCONT)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
