"""Admission: so many restores at once, the rest in order."""

from __future__ import annotations

import asyncio

import pytest

from medes.agent.node.admission import Admission
from medes.errors import BusyError


async def test_admission_runs_so_many_and_queues_the_rest_in_order() -> None:
    admission, order = Admission(2), []

    async def one(n: int) -> None:
        await admission.acquire(10.0)
        order.append(n)

    tasks = [asyncio.create_task(one(n)) for n in range(5)]
    await asyncio.sleep(0.01)
    assert (order, admission.running, admission.queued) == ([0, 1], 2, 3)
    for _ in range(3):
        admission.release()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert admission.running == 2


async def test_admission_refuses_after_the_deadline_and_forgets_the_waiter() -> None:
    admission = Admission(1)
    await admission.acquire(1.0)
    with pytest.raises(BusyError, match="too long"):
        await admission.acquire(0.01, "s1")
    assert (admission.queued, admission.refused) == (0, 1)
    admission.release()
    await admission.acquire(0.0)
    assert admission.running == 1


async def test_admission_refuses_at_once_when_the_queue_is_full() -> None:
    admission = Admission(1, queued_max=1)
    await admission.acquire(1.0)
    waiter = asyncio.create_task(admission.acquire(10.0))
    await asyncio.sleep(0)
    with pytest.raises(BusyError, match="queued"):
        await admission.acquire(10.0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert admission.queued == 0


async def test_a_demand_wake_delays_the_queue_but_is_never_refused() -> None:
    admission = Admission(1)
    admission.enter()
    admission.enter()
    waiter = asyncio.create_task(admission.acquire(10.0))
    await asyncio.sleep(0)
    admission.release()
    await asyncio.sleep(0)
    assert not waiter.done()
    admission.release()
    await waiter
    assert admission.running == 1
