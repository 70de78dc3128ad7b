"""A clock for the agent's timers that only a test moves."""

from __future__ import annotations

import asyncio

from medes.clock import Clock


class ManualClock(Clock):
    """A clock that stands until a test advances it; sleepers wake when their time has come."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self._now_s = start_s
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now_s(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._sleepers.append((self._now_s + seconds, event))
        await event.wait()

    async def advance(self, seconds: float) -> None:
        """Moves time and lets everybody whose time has come run."""
        self._now_s += seconds
        due = [s for s in self._sleepers if s[0] <= self._now_s]
        self._sleepers = [s for s in self._sleepers if s[0] > self._now_s]
        for _, event in due:
            event.set()
        for _ in range(10):
            await asyncio.sleep(0)
