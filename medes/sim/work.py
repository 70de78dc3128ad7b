"""Where a simulation's blocking calls run: at once, on the loop. What a call takes of the simulated time, its object says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Timed(Protocol):
    """Whose blocking calls take simulated time."""

    def takes_s(self, call: str) -> float:
        """From now on, for the method of that name."""
        ...


class Inline(Executor):
    """An executor whose futures are done when they are handed out."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class SimWorkers:
    """As medes.agent.node.workers.Workers, without threads."""

    async def ops(self, function: Callable[..., T], *arguments: object) -> T:
        takes_s = getattr(getattr(function, "__self__", None), "takes_s", None)
        if takes_s is not None and (seconds := takes_s(function.__name__)) > 0:
            await asyncio.sleep(seconds)
        return function(*arguments)

    restores = watches = renewal = ops

    def own(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.ensure_future(self.ops(function, *arguments))

    def close(self) -> None:
        """There is nothing to end."""
