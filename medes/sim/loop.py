"""An event loop whose time passes only while nothing is to be done: it jumps to the next timer.

All of asyncio's waits (sleep, timeout, wait_for) go by the loop's time, and `SimClock` shows the same to whom a
medes.clock.Clock is passed. So code that waits for hours runs in moments, and in the same order each time. What happens
outside (a socket, a thread) has no place in it: a loop that waits for that alone would wait for ever, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import selectors
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

from medes.clock import Clock
from medes.errors import InternalError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
WALL_BEGIN_S = 1_700_000_000.0  # what the calendar says at the begin


class SimLoop(asyncio.SelectorEventLoop):
    """Begins at second 0. Use from the thread that made it; others may call `call_soon_threadsafe`."""

    # asyncio's own: what runs next, whether `stop` was called, and what takes in what a selector found.
    _ready: deque[asyncio.Handle]
    _stopping: bool
    _process_events: Callable[[list[tuple[selectors.SelectorKey, int]]], None]

    def __init__(self) -> None:
        self._now_s = 0.0
        self._thread = threading.get_ident()
        # (when, which came first, timer): those of one time run in the order in which they were set. Cancelled ones stay.
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_set = 0
        self._sockets = selectors.DefaultSelector()
        super().__init__(self._sockets)

    def time(self) -> float:
        return self._now_s

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_set += 1
        heapq.heappush(self._timers, (when, self._timers_set, timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Without a word through the loop's socket where it is the loop itself that calls: an executor that works inline."""
        if threading.get_ident() == self._thread:
            return self.call_soon(callback, *args, context=context)
        return super().call_soon_threadsafe(callback, *args, context=context)

    def _run_once(self) -> None:
        """asyncio's own turn, with the next timer's time in place of a wait."""
        ready = self._ready
        if not ready and not self._stopping:
            self._process_events(self._sockets.select(0))
            if not ready:
                self._jump()
        for _ in range(len(ready)):  # what these make ready has its turn in the next round
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _jump(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers or timers[0][0] == math.inf:
            raise InternalError("nothing is left that could happen", object="simulation")
        self._now_s = now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= now_s:
            self._ready.append(heapq.heappop(timers)[2])


class SimClock(Clock):
    """The time of a loop. Worker threads have none in a simulation: `wait` returns at once."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return WALL_BEGIN_S + self._loop.time()

    def wait(self, seconds: float) -> None:
        """Nobody else could move the time meanwhile."""


def run(main: Callable[[SimClock], Coroutine[Any, Any, T]]) -> T:
    """What `main` returns, in simulated time; blocks for as long as the work takes. Cancels what it leaves running.

    Raises what `main` raises, and internal when it waits for what can never happen.
    """
    loop = SimLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main(SimClock(loop)))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        with contextlib.suppress(InternalError):
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
