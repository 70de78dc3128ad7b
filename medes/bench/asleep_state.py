"""What the programs of the asleep benchmark hold, how they are probed, and how every byte of it is checked."""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from medes.errors import CorruptError

ANSWER_TIMEOUT_S = 60.0
HOST = "127.0.0.1"
FILES, FILE_BYTES = 40, 64 << 10
BATCH_KEYS = 1000
ASKED_MAX = 100


class State(Protocol):
    """The state of a program, behind a port or its standard streams. All of it blocks, and raises OSError where the program does not answer, corrupt
    where it answers wrong."""

    def fill(self, port: int) -> None:
        """Puts the state into the started program, where it has none yet."""
        ...

    def probe(self, port: int) -> None:
        """A health check over a connection of its own."""
        ...

    def verify(self, port: int) -> None:
        """Looks at all of it."""
        ...


def item(number: int) -> str:
    """What the servers of asleep_sources.py hold, each in its own language."""
    return f"{number}:" + f"{number * 2654435761 % 4294967296:08x}" * 8


def items_digest(count: int) -> str:
    """Of the first `count` items, one behind the other."""
    digest = hashlib.sha256()
    for number in range(count):
        digest.update(item(number).encode())
    return digest.hexdigest()


class Items:
    """`count` items in each of `processes` processes, of which one answers."""

    def __init__(self, count: int, processes: int = 1) -> None:
        self.expected, self._processes = items_digest(count), processes

    def fill(self, port: int) -> None:
        pass

    def probe(self, port: int) -> None:
        if (body := get(port, "/")) != b"ok":
            raise CorruptError(f"answered {body[:100]!r} to a probe", object=f"port {port}")

    def verify(self, port: int) -> None:
        seen: set[bytes] = set()
        with ThreadPoolExecutor(2 * self._processes) as pool:
            for _ in range(ASKED_MAX):
                # Several at once, since who answers one is often the one that answers the next.
                asked = pool.map(lambda _: get(port, "/state"), range(2 * self._processes))
                for process, _, digest in (answer.partition(b" ") for answer in asked):
                    if digest.decode(errors="replace") != self.expected:
                        raise CorruptError(f"holds other items: {digest[:100]!r}", object=f"port {port}")
                    seen.add(process)
                if len(seen) >= self._processes:
                    return
        raise CorruptError(f"{len(seen)} of {self._processes} processes answered", object=f"port {port}")


class Files:
    """A folder of files that a web server serves."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._digests = {}
        for number in range(FILES):
            content = random.Random(number).randbytes(FILE_BYTES)
            (folder / str(number)).write_bytes(content)
            self._digests[number] = hashlib.sha256(content).digest()
        (folder / "index.html").write_text("ok")

    def fill(self, port: int) -> None:
        pass

    def probe(self, port: int) -> None:
        if (body := get(port, "/")) != b"ok":
            raise CorruptError(f"answered {body[:100]!r} to a probe", object=f"port {port}")

    def verify(self, port: int) -> None:
        for number, digest in self._digests.items():
            if hashlib.sha256(get(port, f"/{number}")).digest() != digest:
                raise CorruptError("served another file", object=str(number))


class Keys:
    """`count` keys in redis."""

    def __init__(self, count: int) -> None:
        self._count = count

    def fill(self, port: int) -> None:
        with Redis(port) as redis:
            for batch in self._batches():
                words = [word for n in batch for word in (f"key:{n}", item(n))]
                if redis.ask("MSET", *words) != b"OK":
                    raise CorruptError("did not take keys", object=f"port {port}")

    def probe(self, port: int) -> None:
        with Redis(port) as redis:
            if (answer := redis.ask("PING")) != b"PONG":
                raise CorruptError(f"answered {answer!r} to PING", object=f"port {port}")

    def verify(self, port: int) -> None:
        with Redis(port) as redis:
            if (size := redis.ask("DBSIZE")) != self._count:
                raise CorruptError(f"holds {size!r} keys of {self._count}", object=f"port {port}")
            for batch in self._batches():
                if redis.ask("MGET", *(f"key:{n}" for n in batch)) != [item(n).encode() for n in batch]:
                    raise CorruptError("holds other values", object=f"keys from {batch[0]}")

    def _batches(self) -> Iterator[Sequence[int]]:
        for begin in range(0, self._count, BATCH_KEYS):
            yield range(begin, min(begin + BATCH_KEYS, self._count))


class Redis:
    """A connection, in redis' own protocol."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S)
        self._stream = self._sock.makefile("rb")

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._sock.close()

    def ask(self, *words: str) -> bytes | int | list[object] | None:
        parts = [f"*{len(words)}\r\n".encode()]
        for word in words:
            parts.append(f"${len(word.encode())}\r\n{word}\r\n".encode())
        self._sock.sendall(b"".join(parts))
        return self._answer()

    def _answer(self) -> bytes | int | list[object] | None:
        line = self._stream.readline()
        if not line:
            raise ConnectionResetError("redis hung up")
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self._stream.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        return rest  # a status, or an error's text


def get(port: int, path: str) -> bytes:
    """What is served there, over a connection of its own. Raises OSError."""
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else f"status {answer.status}".encode()
    except http.client.HTTPException as error:
        raise ConnectionResetError(f"no HTTP answer: {error!r}") from None
    finally:
        connection.close()


def timed_ms(state: State, port: int) -> float:
    """Of one probe. Raises as it does."""
    begun_s = time.perf_counter()
    state.probe(port)
    return (time.perf_counter() - begun_s) * 1000
