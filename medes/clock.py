"""Time as the agent sees it; passed in, so that tests run the timers without waiting."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits; cancellable."""
        await asyncio.sleep(seconds)
