"""Watchers of state changes."""

from __future__ import annotations

import asyncio

import pytest

from medes.agent.sandboxes.watch import WatchHub
from medes.errors import LimitExceededError
from medes.types import Sandbox, SandboxEvent
from medes.types import SandboxState as S


def event(n: int, function: str = "f") -> SandboxEvent:
    return SandboxEvent(Sandbox(f"s{n}", function), S.WARM, "r", n)


async def test_watchers_see_their_function_only_and_end_with_the_hub() -> None:
    hub = WatchHub()
    seen: list[int] = []

    async def watch() -> None:
        async for e in hub.events("f"):
            seen.append(e.sequence)

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    hub.publish(event(1))
    hub.publish(event(2, "other"))
    hub.publish(event(3))
    hub.close()
    await task
    assert seen == [1, 3]


async def test_a_watcher_that_falls_behind_is_told() -> None:
    hub = WatchHub(queue_max=2)
    stream = hub.events()
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    for n in range(5):
        hub.publish(event(n))
    assert (await first).sequence == 0
    assert (await anext(stream)).sequence == 1
    with pytest.raises(LimitExceededError, match="fell behind"):
        await anext(stream)


async def test_watchers_are_bounded() -> None:
    hub = WatchHub(watchers_max=1)
    stream = hub.events()
    first = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(LimitExceededError, match="already 1"):
        await anext(hub.events())
    first.cancel()
