"""Simulated time: exact, in order, and finished when nothing can happen any more."""

from __future__ import annotations

import asyncio
import random

import pytest

from medes.clock import Clock
from medes.errors import InternalError
from medes.sim.loop import WALL_BEGIN_S, SimClock, run


def test_hours_pass_at_once_and_exactly() -> None:
    async def main(clock: SimClock) -> tuple[float, float]:
        await clock.sleep(6 * 3600)
        await asyncio.sleep(0.25)
        return clock.now_s(), clock.wall_s()

    assert run(main) == (21600.25, WALL_BEGIN_S + 21600.25)


def test_timeouts_are_of_the_same_time() -> None:
    async def main(clock: SimClock) -> list[float]:
        seen = []
        for wait_s, end_s in ((5.0, 60.0), (60.0, 5.0)):
            try:
                async with asyncio.timeout(end_s):
                    await asyncio.sleep(wait_s)
            except TimeoutError:
                seen.append(-clock.now_s())
            else:
                seen.append(clock.now_s())
        return seen

    assert run(main) == [5.0, -10.0]


def walk(seed: int) -> list[tuple[float, int]]:
    """Who did something when, of workers that wait at random and wake each other."""
    source = random.Random(seed)

    async def main(clock: SimClock) -> list[tuple[float, int]]:
        done: list[tuple[float, int]] = []
        queue: asyncio.Queue[int] = asyncio.Queue()

        async def worker(number: int) -> None:
            for _ in range(50):
                await clock.sleep(source.random() * 100)
                done.append((clock.now_s(), number))
                queue.put_nowait(number)

        async def taker() -> None:
            while True:
                number = await queue.get()
                done.append((clock.now_s(), 100 + number))

        taking = asyncio.create_task(taker())
        await asyncio.gather(*(worker(n) for n in range(20)))
        await asyncio.sleep(0)
        taking.cancel()
        return done

    return run(main)


def test_the_same_seed_is_the_same_history() -> None:
    first = walk(7)
    assert len(first) > 1000
    assert first == walk(7)
    assert first != walk(8)
    assert [at_s for at_s, _ in first] == sorted(at_s for at_s, _ in first)


def test_a_wait_for_what_cannot_happen_ends() -> None:
    async def main(clock: SimClock) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(InternalError, match="nothing is left that could happen"):
        run(main)


def test_what_is_left_running_is_ended() -> None:
    ended = []

    async def main(clock: SimClock) -> None:
        async def for_ever(own: Clock) -> None:
            try:
                while True:
                    await own.sleep(1.0)
            finally:
                ended.append(own.now_s())

        asyncio.get_running_loop().create_task(for_ever(clock))
        await clock.sleep(10.5)

    run(main)
    assert ended == [10.5]
