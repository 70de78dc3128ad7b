"""A sandbox of several processes that share their data since a fork, as `gunicorn --preload` does. Run as a script.

A line on stdin is answered by one with a digest of the data of each process, separated by spaces.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from typing import Any

from medes import native

WORKERS = 3


def main(megabytes: int) -> None:
    data = random.Random(3).randbytes(megabytes << 20)
    workers = []
    for _ in range(WORKERS):
        asked, answered = os.pipe(), os.pipe()
        if os.fork() == 0:
            while os.read(asked[0], 1):
                os.write(answered[1], hashlib.sha256(data).hexdigest().encode())
            os._exit(0)
        workers.append((asked[1], answered[0]))
    print("ready", flush=True)
    for _ in sys.stdin:
        for asked_end, _ in workers:
            os.write(asked_end, b"?")
        answers = [os.read(answer_end, 64).decode() for _, answer_end in workers]
        print(hashlib.sha256(data).hexdigest(), *answers, flush=True)


class ForkPool:
    """The pool as a child process."""

    def __init__(self, megabytes: int) -> None:
        self.expected = hashlib.sha256(random.Random(3).randbytes(megabytes << 20)).hexdigest()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        assert self._out.readline() == "ready\n"

    @property
    def pids(self) -> list[int]:
        """The first process and its workers."""
        return native.process_tree([self.process.pid])

    def held_bytes(self) -> int:
        """What its processes hold, shared pages counted once."""
        return native.private_bytes(self.pids)

    def ask(self) -> None:
        """Every process must have its data."""
        self._in.write("?\n")
        self._in.flush()
        assert self._out.readline().split() == [self.expected] * (WORKERS + 1)

    def __enter__(self) -> ForkPool:
        return self

    def __exit__(self, *exc: Any) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait(10)
        self._in.close()
        self._out.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
