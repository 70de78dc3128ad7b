"""State changes for Watch: every watcher has a bounded queue; one that cannot keep up is told so and ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from medes.errors import LimitExceededError
from medes.limits import WATCH_QUEUE_EVENTS_MAX, WATCHERS_MAX
from medes.types import SandboxEvent


class _Watcher:
    def __init__(self, function: str, queue_max: int) -> None:
        self.function = function
        self.queue: asyncio.Queue[SandboxEvent | None] = asyncio.Queue(queue_max + 1)
        self.overflowed = False


class WatchHub:
    """Spreads events to watchers. Use from one event loop."""

    def __init__(self, queue_max: int = WATCH_QUEUE_EVENTS_MAX, watchers_max: int = WATCHERS_MAX) -> None:
        self._watchers: set[_Watcher] = set()
        self._queue_max = queue_max
        self._watchers_max = watchers_max
        self.sequence = 0

    @property
    def watched(self) -> bool:
        """Whether anybody would see an event."""
        return bool(self._watchers)

    def publish(self, event: SandboxEvent) -> None:
        """Never blocks."""
        for watcher in self._watchers:
            if watcher.function and watcher.function != event.sandbox.function:
                continue
            if watcher.queue.qsize() >= self._queue_max:
                watcher.overflowed = True
                continue
            watcher.queue.put_nowait(event)

    def next_sequence(self) -> int:
        self.sequence += 1
        return self.sequence

    async def events(self, function: str = "") -> AsyncIterator[SandboxEvent]:
        """Events from now on, of one function or all. Ends at close(); raises limit_exceeded when it fell behind."""
        if len(self._watchers) >= self._watchers_max:
            raise LimitExceededError(f"already {self._watchers_max} watchers", object="Watch")
        watcher = _Watcher(function, self._queue_max)
        self._watchers.add(watcher)
        try:
            while True:
                if watcher.overflowed and watcher.queue.empty():
                    raise LimitExceededError(
                        "the watcher fell behind and missed events",
                        object="Watch",
                        hint="list, then watch again",
                    )
                event = await watcher.queue.get()
                if event is None:
                    return
                yield event
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """Ends every watcher after what it has queued."""
        for watcher in self._watchers:
            if not watcher.queue.full():
                watcher.queue.put_nowait(None)
