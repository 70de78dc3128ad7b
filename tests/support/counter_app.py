"""A sandbox for tests: a Python HTTP server whose state a wrong byte would break. Run as a script.

GET /           → {"count", "digest", "sum"}: counts requests, digests all of its buffers
GET /touch?n=…  writes into n pages
GET /fork       → the answer of / as a forked child gives it
Prints its port. Its memory: MEGABYTES of half-structured, half-repeating data, the same in every instance but for
the seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from typing import Any

PAGE_BYTES = 4096


class State:
    """Objects on the heap, buffers of their own mappings, a counter and a thread that only waits."""

    def __init__(self, megabytes: int, seed: int) -> None:
        shared = random.Random(7)
        own = random.Random(seed)
        self.words = [f"word-{shared.randrange(10**9)}-{i}" for i in range(20_000)]
        self.table = {w: (i, [i, i + 1]) for i, w in enumerate(self.words)}
        self.buffers = [bytearray(shared.randbytes(256 << 10)) for _ in range(max(1, megabytes * 4))]
        self.own = bytearray(own.randbytes(512 << 10))
        self.count = 0
        self.lock = threading.Lock()
        self.waiter = threading.Thread(target=threading.Event().wait, daemon=True)
        self.waiter.start()

    def answer(self) -> dict[str, Any]:
        with self.lock:
            self.count += 1
            digest = hashlib.sha256(self.own)
            for buffer in self.buffers:
                digest.update(buffer)
            total = sum(v[0] + v[1][1] for v in self.table.values())
            return {"count": self.count, "digest": digest.hexdigest(), "sum": total}

    def touch(self, pages: int) -> None:
        with self.lock:
            for n in range(pages):
                buffer = self.buffers[n % len(self.buffers)]
                buffer[(n * PAGE_BYTES) % len(buffer)] ^= 0x5A


def serve(megabytes: int, seed: int) -> None:
    state = State(megabytes, seed)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?n=")
            if path == "/touch":
                state.touch(int(query))
            body = json.dumps(forked(state.answer) if path == "/fork" else state.answer()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    # Not serve_forever: it looks about twice a second, and would so wake the sandbox each time.
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, address = listener.accept()
        threading.Thread(target=answer, args=(Handler, connection, address), daemon=True).start()


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a child that ends with it; of one that dies its wait status."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(work()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        return {"child": child, "status": status, "answer": text}  # -11: SIGSEGV; no answer of `work`
    return json.loads(text)


def answer(handler: type[BaseHTTPRequestHandler], connection: socket.socket, address: Any) -> None:
    with connection:
        handler(connection, address, None)  # type: ignore[arg-type]


class App:
    """The server as a child process; `ask` checks that nothing but the counter changed."""

    def __init__(self, megabytes: int = 8, seed: int = 1, prefix: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, __file__, str(megabytes), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.first = self._get("/")
        self.count = int(self.first["count"])

    @property
    def pid(self) -> int:
        return self.process.pid

    def _get(self, path: str, timeout_s: float = 30.0) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            return dict(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def ask(self, timeout_s: float = 30.0) -> None:
        """One request; every byte of its state must be what it was."""
        answer = self._get("/", timeout_s)
        self.count += 1
        assert answer == {**self.first, "count": self.count}

    @contextmanager
    def unanswered(self, for_s: float) -> Iterator[None]:
        """A request that gets no answer for `for_s`, and the right one after the block.

        It is waited for: a server of many threads might answer a later request first, and count it so.
        """
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30.0)
        with closing(connection):
            connection.request("GET", "/")
            assert not select.select([connection.sock], [], [], for_s)[0], "answered without its memory"
            yield
            answer = json.loads(connection.getresponse().read())
        self.count += 1
        assert answer == {**self.first, "count": self.count}

    def touch(self, pages: int) -> None:
        """Changes pages; the new digest is the expected one from then on."""
        self.first = self._get(f"/touch?n={pages}")
        self.count += 1

    def fork(self, timeout_s: float = 30.0) -> None:
        """One request that a forked child answers, from the same state."""
        answer = self._get("/fork", timeout_s)
        assert "status" not in answer, f"the forked child died: {answer}"
        assert answer == {**self.first, "count": self.count + 1}

    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """Ends the process. Idempotent."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> App:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
