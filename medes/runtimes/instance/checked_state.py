"""What a function keeps between requests so that one wrong byte of its memory shows in the next answer.

The ten functions of this package each hold a CheckedState. It is standard library only, and deliberately plain:
the point is memory that must survive, not speed.
"""

import hashlib
import os
import random
from collections import OrderedDict
from typing import Any

EVENTS_MAX = 4096
CACHED_MAX = 64
UNIQUE_BYTES = 64 << 10
LINE_BYTES = 64


class StateDamagedError(RuntimeError):
    """Kept state is not what was stored: memory came back wrong."""


def digest(*parts: object) -> str:
    """A short stable digest of bytes, buffers, or the repr of anything else."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        plain = part if isinstance(part, bytes | bytearray | memoryview) else repr(part).encode()
        hasher.update(len(plain).to_bytes(8, "little"))
        hasher.update(plain)
    return hasher.hexdigest()


class CheckedState:
    """A counter, a chain over all events, a cache of answers and a buffer, each checked at every request.

    buffer_bytes is text that every instance of a function has alike, laid out in separate objects so that it is
    full of pointers, as a Python heap is; besides it, UNIQUE_BYTES no other instance has.
    """

    def __init__(self, name: str, buffer_bytes: int) -> None:
        generator = random.Random(name)
        self.requests = 0
        self._events: list[str] = []
        self._dropped = digest(name)
        self._chain = self._dropped
        self._cache: OrderedDict[str, tuple[Any, str]] = OrderedDict()
        self._unique = bytearray(os.urandom(UNIQUE_BYTES))
        self._lines = [
            f"{name} {number:08d} {generator.getrandbits(128):032x}".ljust(LINE_BYTES)
            for number in range(buffer_bytes // (LINE_BYTES + 64))
        ]
        self._buffer_digest = self._digest_buffer()

    def begin(self, event: object) -> str:
        """Checks everything kept, counts the event, and returns its key. Raises StateDamagedError."""
        self.check()
        key = digest(event)
        self.requests += 1
        self._events.append(key)
        self._chain = digest(self._chain, key)
        if len(self._events) > EVENTS_MAX:
            self._dropped = digest(self._dropped, self._events.pop(0))
        return key

    def finish(self, key: str, result: Any) -> dict[str, Any]:
        """The answer for an event: its result and the digest of what was kept. The same event must give the
        same result every time; StateDamagedError when this instance gave another one before."""
        result_digest = digest(result)
        known = self._cache.get(key)
        if known is not None and known != (result, result_digest):
            raise StateDamagedError(f"the answer to event {key} was {known[0]!r} and is now {result!r}")
        self._cache[key] = (result, result_digest)
        self._cache.move_to_end(key)
        while len(self._cache) > CACHED_MAX:
            self._cache.popitem(last=False)
        return {"result": result, "state_digest": self._buffer_digest}

    def check(self) -> None:
        """Recomputes every digest from the kept bytes. Raises StateDamagedError."""
        chain = self._dropped
        for key in self._events:
            chain = digest(chain, key)
        if chain != self._chain or self.requests < len(self._events):
            raise StateDamagedError(f"the chain over {self.requests} requests is broken")
        if self._digest_buffer() != self._buffer_digest:
            raise StateDamagedError("the buffer changed between requests")
        for key, (result, result_digest) in self._cache.items():
            if digest(result) != result_digest:
                raise StateDamagedError(f"the cached answer to event {key} changed between requests")

    def _digest_buffer(self) -> str:
        hasher = hashlib.blake2b(self._unique, digest_size=16)
        for line in self._lines:
            hasher.update(line.encode())
        return hasher.hexdigest()
