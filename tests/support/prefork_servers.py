"""Servers whose processes share memory since a fork, as people run them. Each skips its test where it is not installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from medes import native
from tests.support.ports import free_port

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0
NOBODY = 65534  # PostgreSQL does not run as root
NGINX = """
daemon off; master_process on; worker_processes 2; pid nginx.pid; error_log error.log;
events { worker_connections 64; }
http { access_log off; server { listen 127.0.0.1:%d; location / { return 200 "ok"; } } }
"""
# A request that takes a while leaves the next one to another worker.
GUNICORN = """
import os, time
def app(environ, start_response):
    time.sleep(0.1)
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
WORKERS = 2
QUERY = "select count(*), sum(n) from (select generate_series(1, 1000) n) numbers;\n"
CONNECTIONS = 5


@dataclass(frozen=True)
class PreforkServer:
    """It runs. `ask` raises where it does not answer what it should."""

    pid: int
    ask: Callable[[], None]

    @property
    def pids(self) -> list[int]:
        return native.process_tree([self.pid])


def _command(*names: str) -> str:
    path = "/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", os.defpath)
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        path += f":{folder}"
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    pytest.skip(f"{names[0]} is not installed")


@contextlib.contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """All of its processes have ended with the block, whatever they wait for."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        pids = native.process_tree([process.pid])
        process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pid in pids if process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _answers(ask: Callable[[], None], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return ask()
        except (OSError, subprocess.CalledProcessError):
            assert process.poll() is None and time.monotonic() < deadline_s, log.read_text(errors="replace")
            time.sleep(0.05)


def _get(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=ANSWER_TIMEOUT_S) as answer:
        body: bytes = answer.read()
        return body


def _ask_nginx(port: int) -> None:
    assert _get(port) == b"ok"


def _ask_gunicorn(port: int) -> None:
    """Each worker has started and has answered."""
    seen: set[bytes] = set()
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    with ThreadPoolExecutor(2 * WORKERS) as several:
        while len(seen) < WORKERS:
            assert time.monotonic() < deadline_s, f"{len(seen)} of {WORKERS} workers answered"
            seen.update(several.map(lambda _: _get(port), range(2 * WORKERS)))


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[PreforkServer]:
    program, port = _command("nginx"), free_port()
    (folder / "nginx.conf").write_text(NGINX % port)
    with _running([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], folder) as process:
        _answers(lambda: _ask_nginx(port), process, folder / "log")
        yield PreforkServer(process.pid, lambda: _ask_nginx(port))


@contextlib.contextmanager
def gunicorn(folder: Path) -> Iterator[PreforkServer]:
    if importlib.util.find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    port = free_port()
    (folder / "served.py").write_text(GUNICORN)
    options = ["--workers", str(WORKERS), "--timeout", "600", "--bind", f"127.0.0.1:{port}"]
    with _running([sys.executable, "-m", "gunicorn", *options, "served:app"], folder) as process:
        _answers(lambda: _ask_gunicorn(port), process, folder / "log")
        yield PreforkServer(process.pid, lambda: _ask_gunicorn(port))


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[PreforkServer]:
    """With connections that stay open."""
    initdb, postgres, psql = _command("initdb"), _command("postgres"), _command("psql")
    as_nobody = [_command("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    os.chown(folder, NOBODY, NOBODY)
    port, data = free_port(), str(folder / "data")
    make = [*as_nobody, initdb, "-D", data, "-A", "trust", "-U", "tester", "--no-sync"]
    subprocess.run(make, cwd=folder, check=True, capture_output=True)
    serve = [
        *as_nobody,
        postgres,
        "-D",
        data,
        "-F",
        "-p",
        str(port),
        "-k",
        str(folder),
        "-c",
        "autovacuum=off",
    ]
    client = [psql, "-h", str(folder), "-p", str(port), "-U", "tester", "-d", "postgres", "-Atq"]

    def once() -> None:
        subprocess.run([*client, "-c", "select 1"], check=True, capture_output=True)

    with contextlib.ExitStack() as stack:
        process = stack.enter_context(_running(serve, folder))
        _answers(once, process, folder / "log")
        sessions = [
            stack.enter_context(
                subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(CONNECTIONS)
        ]
        for session in sessions:
            stack.callback(session.kill)

        def ask() -> None:
            for session in sessions:
                assert session.stdin is not None and session.stdout is not None
                session.stdin.write(QUERY)
                session.stdin.flush()
                assert session.stdout.readline() == "1000|500500\n"

        ask()
        yield PreforkServer(process.pid, ask)


SERVERS: dict[str, Callable[[Path], AbstractContextManager[PreforkServer]]] = {
    "nginx": nginx,
    "gunicorn": gunicorn,
    "postgresql": postgresql,
}


@contextlib.contextmanager
def prefork_server(name: str) -> Iterator[PreforkServer]:
    """In a folder that other users may look into."""
    with tempfile.TemporaryDirectory(prefix="medes-prefork-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        with SERVERS[name](folder) as server:
            yield server
