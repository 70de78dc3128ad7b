"""The programs of the asleep benchmark: what each needs of the machine, how it is made, started and ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medes.bench import asleep_sources as sources
from medes.bench.agent import RunningAgent
from medes.bench.asleep_state import HOST, Files, Items, Keys, State
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
    """A program's command, and the state that it serves."""

    command: list[str]
    state: State


Make = Callable[[Path, int, Sizes], Made]  # in an empty folder, to listen on a port


@dataclass(frozen=True)
class Program:
    """`make` may compile for a minute. `commands`, `modules`: what must be installed."""

    name: str
    make: Make
    commands: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def missing(self) -> str:
        """Why it cannot run here; "" where it can."""
        lacking = [f"{name} is not installed" for name in self.commands if not _which(name)]
        lacking += [
            f"python package {name} is not installed"
            for name in self.modules
            if importlib.util.find_spec(name) is None
        ]
        return "; ".join(lacking)


@dataclass(frozen=True)
class Served:
    """A program that runs and holds its state."""

    pid: int  # of its first process; the rest are its descendants
    port: int
    state: State


@contextlib.contextmanager
def started(program: Program, sizes: Sizes, agent: RunningAgent) -> Iterator[Served]:
    """The program with its state, in a folder and a session of its own; ended with the block. Raises internal where it
    cannot be made or does not answer."""
    folder = agent.folder / program.name
    folder.mkdir()
    port = _free_port()
    made = program.make(folder, port, sizes)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            made.command,
            cwd=folder,
            env={**os.environ, "ITEMS": str(sizes.items)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    agent.janitor.process(process.pid)
    try:
        _wait_for(process, program.name, made.state, port, folder / "log")
        made.state.fill(port)
        yield Served(process.pid, port, made.state)
    finally:
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


def _which(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or ""


def _build(*command: str, folder: Path, **environment: str) -> None:
    """Raises internal with the compiler's last words."""
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


# --- each of them ------------------------------------------------------------------------------------------
def _redis(folder: Path, port: int, sizes: Sizes) -> Made:
    options = ["--bind", HOST, "--port", str(port), "--dir", str(folder), "--save", ""]
    return Made(["redis-server", *options], Keys(sizes.keys))


def _http_server(folder: Path, port: int, sizes: Sizes) -> Made:
    files = folder / "files"
    state = Files(files)
    return Made([sys.executable, "-m", "http.server", str(port), "--bind", HOST, "-d", str(files)], state)


def _node(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "server.js").write_text(sources.NODE)
    return Made(["node", "server.js", str(port)], Items(sizes.items))


def _gunicorn(folder: Path, port: int, sizes: Sizes) -> Made:
    _python(folder, "wsgi.py", sources.WSGI)
    command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"{HOST}:{port}", "wsgi:app"]
    return Made(command, Items(sizes.items, processes=2))


def _uvicorn(folder: Path, port: int, sizes: Sizes) -> Made:
    _python(folder, "asgi.py", sources.FASTAPI)
    command = [sys.executable, "-m", "uvicorn", "--host", HOST, "--port", str(port), "asgi:app"]
    return Made(command, Items(sizes.items))


def _pool(folder: Path, port: int, sizes: Sizes) -> Made:
    _python(folder, "pool.py", sources.POOL)
    return Made([sys.executable, "pool.py", str(port)], Items(sizes.items, processes=2))


def _jvm(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "Server.java").write_text(sources.JAVA)
    _build("javac", "Server.java", folder=folder)
    return Made(["java", "-cp", str(folder), "Server", str(port)], Items(sizes.items))


def _go(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "server.go").write_text(sources.GO)
    environment = {"GOCACHE": str(folder / "cache"), "GOPATH": str(folder / "path"), "GO111MODULE": "off"}
    _build("go", "build", "-o", "server", "server.go", folder=folder, **environment)
    return Made([str(folder / "server"), str(port)], Items(sizes.items))


def _nginx(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "nginx.conf").write_text(sources.NGINX.format(folder=folder, port=port))
    state = Files(folder / "files")
    for path in (folder.parent, folder, folder / "files"):
        path.chmod(0o755)  # its workers are another user's
    return Made([_which("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")], state)


def _python(folder: Path, name: str, source: str) -> None:
    (folder / "items.py").write_text(sources.PYTHON_ITEMS)
    (folder / name).write_text(source)


PROGRAMS = {
    program.name: program
    for program in (
        Program("redis", _redis, commands=("redis-server",)),
        Program("http.server", _http_server),
        Program("node", _node, commands=("node",)),
        Program("gunicorn", _gunicorn, modules=("gunicorn",)),
        Program("uvicorn", _uvicorn, modules=("uvicorn", "fastapi")),
        Program("jvm", _jvm, commands=("java", "javac")),
        Program("go", _go, commands=("go",)),
        Program("nginx", _nginx, commands=("nginx",)),
        Program("pool", _pool),
    )
}
