"""The wish to end a dedup op under way: a request has come, or the sandbox is to go.

Native work looks at the flag; what the op waits for elsewhere (a hook, the controller, other nodes) is left at once,
so that nobody's request waits for somebody who does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from medes import native
from medes.agent.node.waits import first_of
from medes.errors import CancelledError

T = TypeVar("T")


class OpCancel:
    """Use from one event loop."""

    def __init__(self, sandbox_id: str) -> None:
        self.flag = native.CancelFlag()
        self.abandoned = False
        self._sandbox_id = sandbox_id
        self._wished = asyncio.Event()

    def cancel(self) -> None:
        """Idempotent."""
        self.flag.cancel()
        self._wished.set()

    def abandon(self) -> None:
        """For the end of the agent: an eviction that is held up ends at once, and is left as by a killed agent."""
        self.abandoned = True
        self.flag.abandon()

    @property
    def cancelled(self) -> bool:
        return self._wished.is_set()

    def check(self) -> None:
        """Raises cancelled."""
        if self.cancelled:
            raise CancelledError("a request arrived: the sandbox stays warm", object=self._sandbox_id)

    async def unless_cancelled(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises; cancels it, and raises cancelled, when the op is to end."""
        task = asyncio.ensure_future(work)
        try:
            await first_of(self._wished, work=task)
            if task.done():
                return task.result()
            self.check()
            raise AssertionError("woken without a reason")
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
            del task  # see waits.py
