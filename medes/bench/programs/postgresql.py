"""PostgreSQL with sessions that stay open, each of which has a table of its own beside the one that all see."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import struct
from pathlib import Path

from medes.bench.asleep_making import Made, Sizes, build, which
from medes.bench.asleep_state import ANSWER_TIMEOUT_S, HOST, items_digest
from medes.errors import CorruptError

USER = "postgres"  # of the database, and of the system where root starts it: it does not run as root
SESSIONS = 8
OWN_ITEMS = 1000
COMMANDS = ("postgres", "initdb", "setpriv")
VERSION_3 = 196608
# What `item` says, and the digest that is compared.
MAKE = """SELECT n, n || ':' || repeat(lpad(to_hex(n * 2654435761 % 4294967296), 8, '0'), 8) AS value
 FROM generate_series(0, {last}::bigint) AS n"""
DIGEST = "SELECT encode(sha256(convert_to(string_agg(value, '' ORDER BY n), 'UTF8')), 'hex') FROM {table}"


def postgresql(folder: Path, port: int, sizes: Sizes) -> Made:
    data = folder / "data"
    data.mkdir(0o700)
    as_user = []
    if os.geteuid() == 0:
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        shutil.chown(data, USER, USER)
        for path in (folder.parent, folder):
            path.chmod(0o755)
    # Nothing that only this benchmark would set, but for where it listens.
    initdb = [which("initdb"), "--pgdata", str(data), "--username", USER, "--auth", "trust", "--no-sync"]
    build(*as_user, *initdb, folder=folder)
    listens = ["-p", str(port), "-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]
    tables = Tables(sizes.items)
    return Made([*as_user, which("postgres"), "-D", str(data), *listens], tables, close=tables.close)


class Tables:
    """`count` items in a table that every session sees, the first of them again in a temporary table of each."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.expected = items_digest(count)
        self._own_count = min(count, OWN_ITEMS)
        self._own_expected = items_digest(self._own_count)
        self._sessions: list[Session] = []
        self._turns = itertools.count()

    def fill(self, port: int) -> None:
        self._sessions = [Session(port) for _ in range(SESSIONS)]
        self._sessions[0].ask("CREATE TABLE items AS " + MAKE.format(last=self._count - 1))
        for session in self._sessions:
            session.ask("CREATE TEMPORARY TABLE own AS " + MAKE.format(last=self._own_count - 1))

    def probe(self, port: int) -> None:
        """SELECT 1 of the session whose turn it is; over a connection of its own where none is open yet."""
        if not self._sessions:
            Session(port).close()
            return
        session = self._sessions[next(self._turns) % SESSIONS]
        if (rows := session.ask("SELECT 1")) != [[b"1"]]:
            raise CorruptError(f"answered {rows!r} to SELECT 1", object=f"port {port}")

    def verify(self, port: int) -> None:
        for session in self._sessions:
            for table, expected in (("items", self.expected), ("own", self._own_expected)):
                if session.ask(DIGEST.format(table=table)) != [[expected.encode()]]:
                    raise CorruptError("holds other items", object=table)

    def close(self) -> None:
        for session in self._sessions:
            session.close()


class Session:
    """A connection, in PostgreSQL's own protocol; it trusts us. Raises OSError where it does not answer."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S)
        self._stream = self._sock.makefile("rb")
        words = b"".join(word.encode() + b"\0" for word in ("user", USER, "database", USER, ""))
        self._sock.sendall(struct.pack("!II", len(words) + 8, VERSION_3) + words)
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stream.close()
        self._sock.close()

    def ask(self, sql: str) -> list[list[bytes | None]]:
        """The rows. Raises corrupt with the server's words where it refuses."""
        words = sql.encode() + b"\0"
        self._sock.sendall(b"Q" + struct.pack("!I", len(words) + 4) + words)
        return self._answer()

    def _answer(self) -> list[list[bytes | None]]:
        rows, refusal = [], b""
        while True:
            head = self._stream.read(5)
            if len(head) < 5:
                raise ConnectionResetError(f"PostgreSQL hung up: {_text(refusal)}")
            kind, size = head[:1], struct.unpack("!I", head[1:])[0]
            body = self._stream.read(size - 4)
            if kind == b"D":
                rows.append(_columns(body))
            elif kind == b"E":
                refusal = body
            elif kind == b"Z":
                if refusal:
                    raise CorruptError(f"refused: {_text(refusal)}", object="PostgreSQL")
                return rows


def _columns(body: bytes) -> list[bytes | None]:
    columns: list[bytes | None] = []
    at = 2
    for _ in range(struct.unpack_from("!H", body)[0]):
        size = struct.unpack_from("!i", body, at)[0]
        at += 4
        columns.append(None if size < 0 else body[at : at + size])
        at += max(0, size)
    return columns


def _text(refusal: bytes) -> str:
    return " ".join(field[1:].decode(errors="replace") for field in refusal.split(b"\0") if field[:1] == b"M")
