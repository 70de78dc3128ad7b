"""Where the agent's blocking calls run: threads of its own for each kind of wait, so that none holds up another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from medes.config import AgentSettings

T = TypeVar("T")
WATCH_THREADS = 32
RENEWAL_THREADS = 2


class Run(Protocol):
    """Runs a blocking call off the event loop; what it returns or raises comes back."""

    def __call__(self, function: Callable[..., T], *arguments: object) -> Awaitable[T]: ...


class Workers:
    """Use from one event loop."""

    def __init__(self, settings: AgentSettings) -> None:
        restores = settings.restores_concurrent_max
        self._ops = ThreadPoolExecutor(settings.dedups_concurrent_max + 1, "medes-op")
        self._restores = ThreadPoolExecutor(restores + 4, "medes-restore")
        self._watches = ThreadPoolExecutor(restores + WATCH_THREADS, "medes-watch")
        self._renewal = ThreadPoolExecutor(RENEWAL_THREADS, "medes-page-renewal")

    async def ops(self, function: Callable[..., T], *arguments: object) -> T:
        """What dedup ops do: few at a time, seconds each."""
        return await asyncio.get_running_loop().run_in_executor(self._ops, function, *arguments)

    def own(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """What may be held up for days: it takes nobody else's thread."""
        pool = ThreadPoolExecutor(1, "medes-held")
        try:
            return asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
        finally:
            pool.shutdown(wait=False)  # it goes with the call's end

    async def restores(self, function: Callable[..., T], *arguments: object) -> T:
        """What a restore waits for, so that a long dedup op never delays a wake."""
        return await asyncio.get_running_loop().run_in_executor(self._restores, function, *arguments)

    async def watches(self, function: Callable[..., T], *arguments: object) -> T:
        """Waits that may be many and long: demand wakes are not held back by admission."""
        return await asyncio.get_running_loop().run_in_executor(self._watches, function, *arguments)

    async def renewal(self, function: Callable[..., T], *arguments: object) -> T:
        """Handshakes with peers: they must not wait behind restores, which may wait for them."""
        return await asyncio.get_running_loop().run_in_executor(self._renewal, function, *arguments)

    def close(self) -> None:
        """(blocks) Until what runs has ended; what waits is dropped. Idempotent."""
        for pool in (self._ops, self._restores, self._watches, self._renewal):
            pool.shutdown(wait=True, cancel_futures=True)
