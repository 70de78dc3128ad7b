"""Sandboxes for the live driver's tests: a program that talks over its pipes, and the dedup op around it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from medes import native

PYTHON_PROGRAM = """
import hashlib, os, sys, threading, time
big = [hashlib.sha256(str(i).encode()).digest() * 64 for i in range(4000)]
digest = hashlib.sha256(b"".join(big)).hexdigest()
requests = 0
def state():
    return "intact" if hashlib.sha256(b"".join(big)).hexdigest() == digest else "BROKEN"
def fork():
    global child
    child = os.pipe()
    if os.fork() == 0:
        os.write(child[1], state().encode())
        os._exit(0)
    return "forked"
def reap():
    answer = os.read(child[0], 64).decode()
    os.wait()
    return answer
def wait():
    threading.Event().wait()
for _ in range(2):
    threading.Thread(target=wait, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    requests += 1
    if line == "touch\\n":
        answer = big[requests % len(big)][:4].hex()
    elif line == "change\\n":
        big[0] = big[1]
        big[1] = bytes(reversed(big[0]))
        digest = hashlib.sha256(b"".join(big)).hexdigest()
        answer = "changed"
    elif line.startswith("exec "):
        answer = str(eval(line[5:]))
    else:
        answer = state()
    print(requests, answer, flush=True)
"""


class Program:
    """A child process that answers one line per line. Killed at the end of the `with` block."""

    def __init__(self, command: Sequence[str] | None = None, ready: str = "ready\n") -> None:
        self.process = subprocess.Popen(
            list(command or [sys.executable, "-c", PYTHON_PROGRAM]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == ready, line

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, line: str) -> str:
        """The answer without the request's number."""
        self.tell(line)
        return self.hear().partition(" ")[2]

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def settled(live: native.LiveSandbox) -> int:
    """How many pages are back once the program has done what it does after its answer."""
    placed = -1
    while placed != live.placed_pages:
        placed = live.placed_pages
        time.sleep(0.1)
    return placed


class Deduper:
    """Dedups processes against a base made of their own first image. No network, no agent."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self.folder = folder
        self.server = native.FaultServer(threads)
        self.slab: native.Slab | None = None
        self.index = native.FingerprintIndex()
        self.count = 0

    def encode(
        self, pids: list[int]
    ) -> tuple[native.MemoryImage, native.SandboxFile, native.BaseSet, native.EncodedImage]:
        image = native.attach(pids)
        if self.slab is None:
            self.use_base(native.Slab.create(str(self.folder / "base.slab"), 1, image))
        bases = self.bases()
        fingerprints, locations, _ = native.survey(image, 8, self.index)
        plan = native.plan_windows(image, fingerprints, locations)
        encoded = native.encode(image, plan, bases)
        self.count += 1
        file = native.SandboxFile.create(
            str(self.folder / f"sandbox-{self.count}.medes"), b"{}", image, encoded
        )
        return image, file, bases, encoded

    def use_base(self, slab: native.Slab) -> None:
        self.slab = slab
        prints = slab.fingerprint()
        self.index.insert(1, prints.hashes, prints.positions, 8)

    def bases(self) -> native.BaseSet:
        bases = native.BaseSet()
        if self.slab is not None:
            bases.add_local(self.slab)
        return bases

    def dedup(
        self,
        pids: list[int],
        hold_frozen: bool = False,
        *,
        working_set: bytes = b"",
        tick_set: bytes = b"",
        touches_per_s_max: int = 0,
    ) -> native.LiveSandbox:
        image, file, bases, _ = self.encode(pids)
        return self.server.evict(
            image, file, bases, hold_frozen, None, working_set, tick_set, touches_per_s_max
        )

    def close(self) -> None:
        self.server.close()
