"""Who waits for an op that is held up, and who does not."""

from __future__ import annotations

import asyncio

import pytest

from medes.agent.sandboxes.op_lock import OpLock
from medes.errors import BusyError

WHY = BusyError("frozen", object="a", hint="thaw it")


async def test_turns_follow_each_other() -> None:
    lock = OpLock()
    async with lock.turn():
        second = asyncio.create_task(lock.take_turn())
        await asyncio.sleep(0)
        assert not second.done()
    await second
    assert lock.locked()
    lock.release()
    assert not lock.locked()


async def test_who_waits_is_told_and_who_comes_later_too() -> None:
    lock = OpLock()
    await lock.acquire()
    early, behind = asyncio.create_task(lock.take_turn()), asyncio.create_task(lock.acquire())
    await asyncio.sleep(0)
    lock.hold_up(WHY)
    for waiting in (early, asyncio.create_task(lock.take_turn())):
        with pytest.raises(BusyError, match="frozen") as error:
            await waiting
        assert (error.value.object, error.value.hint) == ("a", "thaw it")
    lock.release()  # it got on
    assert await behind
    assert lock.held_up is None
    lock.release()
    async with lock.turn():
        assert lock.locked()
    assert not lock.locked()


async def test_a_caller_that_hangs_up_leaves_the_lock_to_others() -> None:
    lock = OpLock()
    await lock.acquire()
    waiting = asyncio.create_task(lock.take_turn())
    await asyncio.sleep(0)
    lock.release()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5), lock.turn():
        assert lock.locked()


async def test_work_goes_on_when_nobody_waits_for_it_any_more() -> None:
    lock, end = OpLock(), asyncio.Event()
    await lock.acquire()
    work = asyncio.create_task(end.wait())
    waiting = asyncio.create_task(lock.unless_held_up(work))
    await asyncio.sleep(0)
    lock.hold_up(WHY)
    with pytest.raises(BusyError):
        await waiting
    end.set()
    assert await work
    lock.release()
