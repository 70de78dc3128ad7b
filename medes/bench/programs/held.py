"""Connections that stay open while the program behind them sleeps and wakes, and what is said over each."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medes.bench import asleep_sources as sources
from medes.bench.asleep_making import Made, Program, Served, Sizes
from medes.bench.asleep_state import ANSWER_TIMEOUT_S, HOST, Items, Redis, items_digest
from medes.bench.programs import postgresql, servers
from medes.errors import CorruptError

READ_BYTES = 64 << 10
# A terminal of its own, as a shell's child has one; then the program.
OWN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Connection(Protocol):
    """Raises OSError where the program does not answer, corrupt where it answers wrong."""

    def use(self) -> None:
        """One exchange. The program counts them for this connection alone, and the count is compared."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Held:
    """A program, and how a connection to it is opened."""

    program: Program
    connect: Callable[[Served], Connection]

    @property
    def name(self) -> str:
        return self.program.name


# --- redis: a count, in the database that the connection has chosen -------------------------------------------------
class RedisConnection:
    def __init__(self, served: Served) -> None:
        self._redis = Redis(served.port)
        self._count = 0
        self._redis.ask("SELECT", "1")  # beside the keys that are looked at in the end

    def use(self) -> None:
        self._count += 1
        _expect("redis", self._redis.ask("INCR", "count"), self._count)

    def close(self) -> None:
        self._redis.close()


# --- HTTP that is kept alive ----------------------------------------------------------------------------------------
def http_server(folder: Path, port: int, sizes: Sizes) -> Made:
    servers.python_source(folder, "server.py", sources.HTTP_KEPT_ALIVE)
    return Made([sys.executable, "server.py", str(port)], Items(sizes.items))


class HttpConnection:
    def __init__(self, served: Served) -> None:
        self._http = http.client.HTTPConnection(HOST, served.port, timeout=ANSWER_TIMEOUT_S)
        self._http.connect()
        self._http.auto_open = False  # one that the server closed is an error, not another connection
        self._count = 0

    def use(self) -> None:
        self._count += 1
        try:
            self._http.request("GET", "/count")
            body = self._http.getresponse().read()
        except http.client.HTTPException as error:
            raise ConnectionResetError(f"no HTTP answer: {error!r}") from None
        _expect("http", body, str(self._count).encode())

    def close(self) -> None:
        self._http.close()


# --- WebSocket ------------------------------------------------------------------------------------------------------
def websocket_server(folder: Path, port: int, sizes: Sizes) -> Made:
    made = servers.uvicorn(folder, port, sizes)
    (folder / "asgi.py").write_text(sources.FASTAPI + sources.FASTAPI_WEBSOCKET)
    return made


class WebSocket:
    def __init__(self, served: Served) -> None:
        client = importlib.import_module("websockets.sync.client")
        self._failure = importlib.import_module("websockets.exceptions").WebSocketException
        opened = client.connect(f"ws://{HOST}:{served.port}/count", open_timeout=ANSWER_TIMEOUT_S)
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(opened)
        self._count = 0

    def use(self) -> None:
        self._count += 1
        try:
            self._socket.send("more")
            answer = self._socket.recv(ANSWER_TIMEOUT_S)
        except self._failure as error:
            raise ConnectionResetError(f"no answer: {error!r}") from None
        _expect("websocket", answer, str(self._count))

    def close(self) -> None:
        self._open.close()


# --- PostgreSQL: a sequence of the session --------------------------------------------------------------------------
class PostgresqlSession:
    def __init__(self, served: Served) -> None:
        self._session = postgresql.Session(served.port)
        self._session.ask("CREATE TEMPORARY SEQUENCE count")
        self._count = 0

    def use(self) -> None:
        self._count += 1
        rows = self._session.ask("SELECT nextval('count')")
        _expect("postgresql", rows, [[str(self._count).encode()]])

    def close(self) -> None:
        self._session.close()


# --- a terminal -----------------------------------------------------------------------------------------------------
def prompt(folder: Path, port: int, sizes: Sizes) -> Made:
    servers.python_source(folder, "prompt.py", "")
    terminal = Terminal(sizes.items)
    return Made(
        [sys.executable, "-c", OWN_TERMINAL, sys.executable, "-q"],
        terminal,
        environment={"TERM": "dumb"},
        stdin=terminal.program_side,
        stdout=terminal.program_side,
        attach=terminal.attach,
        close=terminal.close,
    )


class Terminal:
    """A Python prompt on a pseudo-terminal: `count` items in a variable, and the connection at once."""

    def __init__(self, count: int) -> None:
        self._items, self.expected = count, items_digest(count)
        self._ours, self.program_side = pty.openpty()
        self._asked = self._count = 0
        self._read = ""
        self._open = True

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        os.close(self.program_side)

    def fill(self, port: int) -> None:
        self._tell(
            f"import items, os; os.environ['ITEMS'] = '{self._items}'; ITEMS = items.make(); count = 0"
        )

    def probe(self, port: int) -> None:
        _expect("prompt", self._ask("6 * 7"), "42")

    def use(self) -> None:
        self._count += 1
        _expect("prompt", self._ask("(count := count + 1)"), str(self._count))

    def verify(self, port: int) -> None:
        _expect("prompt", self._ask("items.state(ITEMS).split()[1]"), self.expected)

    def close(self) -> None:
        if self._open:
            os.close(self._ours)
        self._open = False

    def _tell(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    def _ask(self, expression: str) -> str:
        """What the prompt prints of it, between marks that the echo of what was typed does not have."""
        self._asked += 1
        self._tell(f"print('<' + '{self._asked} ' + str({expression}) + '>')")
        wanted = re.compile(rf"<{self._asked} ([^<>]*)>")
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while not (found := wanted.search(self._read)):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._ours], [], [], left_s)[0]:
                raise TimeoutError(f"no answer at the prompt: {self._read[-100:]!r}")
            self._read += os.read(self._ours, READ_BYTES).decode(errors="replace")
        self._read = self._read[found.end() :]
        return found[1]


def _own(served: Served) -> Connection:
    assert isinstance(served.state, Terminal)
    return served.state


def _expect(name: str, answer: Any, expected: Any) -> None:
    if answer != expected:
        raise CorruptError(f"answered {str(answer)[:100]} where {str(expected)[:100]} was due", object=name)


HELD = {
    held.name: held
    for held in (
        Held(Program("redis", servers.redis, commands=("redis-server",)), RedisConnection),
        Held(Program("http", http_server), HttpConnection),
        Held(
            Program("websocket", websocket_server, modules=("uvicorn", "fastapi", "websockets")),
            WebSocket,
        ),
        Held(Program("postgresql", postgresql.postgresql, commands=postgresql.COMMANDS), PostgresqlSession),
        Held(Program("terminal", prompt), _own),
    )
}
