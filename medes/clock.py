"""Time, as agent, controller and their policies see it; passed in, so that a test or a simulation moves it.

What reads the time asks a Clock. What waits in an event loop uses `Clock.sleep`, `asyncio.sleep` or `asyncio.timeout`: the
loop's own timers, which a loop with a time of its own moves along with its clock.
"""

from __future__ import annotations

import asyncio
import time


class Clock:
    """The machine's clocks. Any thread may ask."""

    def now_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Seconds since 1970; an operator may set it."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Waits; cancellable."""
        await asyncio.sleep(seconds)

    def wait(self, seconds: float) -> None:
        """(blocks) For worker threads."""
        time.sleep(seconds)
