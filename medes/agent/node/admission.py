"""Restore admission: a bounded number of restore ops at once, the rest in a bounded queue with a deadline.

A storm of restores then degrades smoothly: each op that runs has the cores it needs, and a caller that would wait
too long is told `busy` while it can still start a sandbox cold.
"""

from __future__ import annotations

import asyncio
from collections import deque

from medes.errors import BusyError
from medes.limits import RESTORES_QUEUED_MAX


class Slot:
    """The right of one restore op to run; given back once, at the latest when the block that it guards is left."""

    def __init__(self, admission: Admission | None) -> None:
        self._admission = admission

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Idempotent."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.release()

    def hand_over(self) -> Slot:
        """The same right, if it was not given back, as a new slot for somebody else to give back; this one has none any
        more."""
        admission, self._admission = self._admission, None
        return Slot(admission)


class Admission:
    """First come, first served. Use from one event loop."""

    def __init__(self, running_max: int, queued_max: int = RESTORES_QUEUED_MAX) -> None:
        self.running_max = running_max
        self.queued_max = queued_max
        self.running = 0
        self.refused = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def enter_within(self, deadline_s: float, object: str = "") -> Slot:
        """A slot of one's own. Raises as `acquire`."""
        await self.acquire(deadline_s, object)
        return Slot(self)

    async def acquire(self, deadline_s: float, object: str = "") -> None:
        """Returns when the caller may run; raises busy when the queue is full or the deadline passes."""
        if self.running < self.running_max and not self._queue:
            self.running += 1
            return
        if len(self._queue) >= self.queued_max:
            self.refused += 1
            raise BusyError(
                f"{self.queued_max} restores are queued", object=object, hint="start cold, or retry"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await asyncio.wait_for(turn, deadline_s)
        except TimeoutError:
            self._give_up(turn)
            self.refused += 1
            hint = "raise deadline_ms or restores_concurrent_max, or start cold"
            raise BusyError("waited too long for a restore's turn", object=object, hint=hint) from None
        except asyncio.CancelledError:
            self._give_up(turn)
            raise

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn in self._queue:
            self._queue.remove(turn)
        elif turn.done() and not turn.cancelled():
            self.release()  # the turn came in the same moment

    def enter(self) -> Slot:
        """The slot of an op that nobody can hold back (a demand wake)."""
        self.running += 1
        return Slot(self)

    def release(self) -> None:
        """Ends one running op and lets the next one run."""
        self.running -= 1
        while self._queue and self.running < self.running_max:
            turn = self._queue.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)
