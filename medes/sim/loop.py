"""An event loop whose time passes only while nothing is to be done: it jumps to the next timer.

All of asyncio's waits (sleep, timeout, wait_for) go by the loop's time, and `SimClock` shows the same to whom a
medes.clock.Clock is passed. So code that waits for hours runs in moments, and in the same order each time. What happens
outside (a socket, a thread) has no place in it: a loop that waits for that alone would wait for ever, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from medes.clock import Clock
from medes.errors import InternalError

T = TypeVar("T")
WALL_BEGIN_S = 1_700_000_000.0  # what the calendar says at the begin


class _Jump(selectors.BaseSelector):
    """Selects without waiting, and moves the loop's time instead."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        self._real = selectors.DefaultSelector()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            raise InternalError("nothing is left that could happen", object="simulation")
        self._jump(timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class SimLoop(asyncio.SelectorEventLoop):
    """Begins at second 0."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jump(self._pass))

    def time(self) -> float:
        return self._now_s

    def _pass(self, seconds: float) -> None:
        self._now_s += seconds
        # A loop runs timers up to its clock's resolution early. Whoever then finds that it is not yet time would wait for less
        # than a float can add, for ever: so it is the least that this one can.
        self._clock_resolution = math.ulp(self._now_s)


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
