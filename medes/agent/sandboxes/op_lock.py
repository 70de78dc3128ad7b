"""The lock that orders the ops on a sandbox, and what those hear who wait for one that is held up.

A freezer may hold a sandbox in the middle of an op, for days. Nothing can be done about the op then, but nobody has to
wait for it: callers are told why, and the op goes on when it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from medes.agent.node.waits import first_of
from medes.errors import BusyError

T = TypeVar("T")


class OpLock(asyncio.Lock):
    """`async with lock` waits for as long as it takes: for work behind the scenes. Whoever answers to a caller takes a
    `turn()`. Use from one event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.held_up: BusyError | None = None  # why the op that has the lock does not get on
        self._told = asyncio.Event()

    def hold_up(self, why: BusyError) -> None:
        """Lets those go who wait for their turn; until the lock is released."""
        self.held_up = why
        self._told.set()

    def release(self) -> None:
        self.held_up = None
        self._told.clear()
        super().release()

    async def take_turn(self) -> None:
        """acquire(). Raises busy when the op that has the lock is held up."""
        if not self.locked():
            await self.acquire()
            return
        acquired = asyncio.ensure_future(self.acquire())
        try:
            await self.unless_held_up(acquired)
        except BaseException:
            if not acquired.cancel() and not acquired.cancelled():
                self.release()  # it was had in the same instant
            raise

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """`async with`, by take_turn()."""
        await self.take_turn()
        try:
            yield
        finally:
            self.release()

    async def unless_held_up(self, work: asyncio.Future[T]) -> T:
        """What `work` returns or raises. Raises busy, and leaves it to go on, when the op that has the lock is held up."""
        await first_of(self._told, work=work)
        if work.done():
            try:
                return work.result()
            finally:
                del work  # see waits.py
        why = self.held_up
        assert why is not None
        raise BusyError(why.message, object=why.object, hint=why.hint)
