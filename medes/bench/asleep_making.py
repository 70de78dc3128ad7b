"""A program of the asleep benchmark: what it needs of the machine, how it is made, started and ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medes.bench.agent import RunningAgent
from medes.bench.asleep_state import HOST, State
from medes.errors import InternalError, MedesError

BUILD_TIMEOUT_S = 300.0
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 5.0
POLL_S = 0.05


@dataclass(frozen=True)
class Sizes:
    """How much state: keys of redis, items of each process of the other servers (about 130 bytes each in Python)."""

    keys: int
    items: int


@dataclass(frozen=True)
class Made:
    """A program's command, and the state that it serves. `stdin`, `stdout` (None: its log): as Popen takes them, of a program
    that is spoken to there. `attach`: given the started process. `close`: lets go of the connections that the state holds
    open; repeatable."""

    command: list[str]
    state: State
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: int = subprocess.DEVNULL
    stdout: int | None = None
    attach: Callable[[subprocess.Popen[bytes]], None] = lambda process: None
    close: Callable[[], None] = lambda: None


Make = Callable[[Path, int, Sizes], Made]  # in an empty folder, to listen on a port


@dataclass(frozen=True)
class Program:
    """`make` may compile for a minute. `commands`, `modules`, `files` (patterns from / on): what must be installed."""

    name: str
    make: Make
    commands: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def missing(self) -> str:
        """Why it cannot run here; "" where it can."""
        lacking = [f"{name} is not installed" for name in self.commands if not which(name)]
        lacking += [
            f"python package {name} is not installed"
            for name in self.modules
            if importlib.util.find_spec(name) is None
        ]
        lacking += [f"no /{pattern}" for pattern in self.files if not any(Path("/").glob(pattern))]
        return "; ".join(lacking)


@dataclass(frozen=True)
class Served:
    """A program that runs and holds its state."""

    pid: int  # of its first process; the rest are its descendants
    port: int
    state: State


@contextlib.contextmanager
def started(
    program: Program, sizes: Sizes, agent: RunningAgent, launcher: Sequence[str] = ()
) -> Iterator[Served]:
    """The program with its state, in a folder and a session of its own; ended with the block. `launcher`: put before its
    command. Raises internal where it cannot be made or does not answer."""
    folder = agent.folder / program.name
    folder.mkdir()
    port = _free_port()
    made = program.make(folder, port, sizes)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*launcher, *made.command],
            cwd=folder,
            env={**os.environ, "ITEMS": str(sizes.items), **made.environment},
            stdin=made.stdin,
            stdout=log if made.stdout is None else made.stdout,
            stderr=log,
            start_new_session=True,
        )
    agent.janitor.process(process.pid)
    try:
        made.attach(process)
        _wait_for(process, program.name, made.state, port, folder / "log")
        made.state.fill(port)
        yield Served(process.pid, port, made.state)
    finally:
        made.close()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
        process.kill()  # the janitor ends the rest of its session
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], name: str, state: State, port: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError, MedesError):
            return state.probe(port)
        if process.poll() is not None or time.monotonic() > deadline_s:
            words = log.read_text(errors="replace")[-300:].strip()
            raise InternalError(f"does not answer: {words}", object=name)
        time.sleep(POLL_S)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def which(name: str) -> str:
    """The path of a command, also of one that is not on everybody's PATH; "" where there is none."""
    beside = ["/usr/sbin", "/usr/local/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(beside)) or ""


def build(*command: str, folder: Path, **environment: str) -> None:
    """Runs a compiler or the like. Raises internal with the compiler's last words."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InternalError(f"not done after {BUILD_TIMEOUT_S:g} s", object=command[0]) from None
    if done.returncode != 0:
        raise InternalError(f"failed: {done.stderr.strip()[-300:]}", object=command[0])
