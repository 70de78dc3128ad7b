"""What a sleeping sandbox touched: how it counts, and when it is learnt. The driver is a stand-in."""

from __future__ import annotations

import asyncio

import pytest

from medes import native
from medes.agent.api import handlers
from medes.agent.daemon import AgentDaemon
from medes.agent.ops import touches, turns
from medes.agent.ops.take_back import rebind
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.agent.sandboxes.working_sets import pack_pages, unpack_pages
from medes.errors import BusyError
from medes.types import NoteCode
from medes.types import SandboxState as S
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import MakeApp, register, until
from tests.unit.agent.stand_ins import StandInHandle

PAGES = [(7, 1), (7, 2), (9, 4)]


async def asleep(make_agent: MakeAgent, make_app: MakeApp) -> tuple[AgentDaemon, StandInHandle]:
    daemon, app = await make_agent(touches_per_s_max=16), make_app()
    await register(daemon, app)
    await handlers.dedup(daemon.agent, "s1")
    return daemon, daemon.driver.handles[0]  # type: ignore[attr-defined]


def touch(handle: StandInHandle, count: int) -> None:
    handle.placed_pages, handle.touched_set = count, pack_pages(PAGES[:count])


def tick_set(daemon: AgentDaemon) -> set[tuple[int, int]]:
    return set(unpack_pages(daemon.agent.tick_sets.get("default", "f").exact()))


async def test_what_was_touched_counts_as_kept(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    before, used = handlers.get(agent, "s1"), agent.usage()
    touch(handle, 3)
    after, bytes_now = handlers.get(agent, "s1"), 3 * native.PAGE_BYTES
    assert (before.touched_bytes, after.touched_bytes) == (0, bytes_now)
    assert after.kept_bytes - before.kept_bytes == bytes_now
    assert agent.usage().kept_bytes - used.kept_bytes == bytes_now
    assert used.saved_bytes - agent.usage().saved_bytes == bytes_now
    await handlers.restore(agent, "s1")
    await until(lambda: handlers.get(agent, "s1").state is S.WARM, "restored")
    assert (entry.kept_bytes, entry.touched_bytes) == (0, 0)


async def test_touches_are_learnt_once_they_have_ended(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    entry = daemon.agent.entries["s1"]
    assert entry.evicted is not None
    entry.evicted.placed_seen = entry.evicted.placed_learnt = 0
    for count in (1, 2):  # more each time: it may be about to wake
        touch(handle, count)
        await touches.look(daemon.agent)
        if entry.evicted.placed_seen == count and entry.evicted.placed_learnt != count:
            assert tick_set(daemon) == set()
    await touches.look(daemon.agent)
    assert tick_set(daemon) == set(PAGES[:2])
    await touches.look(daemon.agent)
    assert daemon.agent.tick_sets.get("default", "f").restores == 1  # nothing new, nothing learnt


async def test_the_next_op_leaves_the_tick_set(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    touch(handle, 3)
    await handlers.restore(daemon.agent, "s1")
    await until(lambda: handlers.get(daemon.agent, "s1").state is S.WARM, "restored")
    await until(lambda: tick_set(daemon) == set(PAGES), "learnt at the end of its sleep")
    await handlers.dedup(daemon.agent, "s1")
    entry, sleep = daemon.agent.entries["s1"], daemon.driver.handles[1].sleep  # type: ignore[attr-defined]
    assert entry.evicted is not None
    assert sleep.touches_per_s_max == 16
    assert set(unpack_pages(sleep.tick_set)) | entry.evicted.tick_holdout == set(PAGES)
    assert not set(unpack_pages(sleep.tick_set)) & entry.evicted.tick_holdout


@pytest.mark.parametrize("slept_s", [0.0, touches.HELD_OUT_S])
async def test_what_is_touched_no_more_leaves_the_set(
    make_agent: MakeAgent, make_app: MakeApp, slept_s: float
) -> None:
    daemon, _ = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    agent.tick_sets.get("default", "f").merge(PAGES)
    for _ in range(3):
        assert entry.evicted is not None
        entry.evicted.tick_holdout = frozenset(PAGES[:1])
        entry.evicted.since_s -= slept_s
        await touches.learn(agent, entry, entry.evicted, over=True)
    assert (PAGES[0] in tick_set(daemon)) == (slept_s == 0.0)
    assert PAGES[1] in tick_set(daemon)


async def test_a_handle_taken_anew_begins_its_record_anew(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    assert entry.evicted is not None
    touch(handle, 2)
    await rebind(agent, entry, entry.evicted)
    assert tick_set(daemon) == set(PAGES[:2])
    second = daemon.driver.handles[1]  # type: ignore[attr-defined]
    second.placed_pages, second.touched_set = 3, pack_pages(PAGES[2:])
    await touches.learn(agent, entry, entry.evicted)
    assert tick_set(daemon) == set(PAGES)


async def test_an_agent_that_ends_learns_first(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    touch(handle, 3)
    await daemon.stop()
    assert tick_set(daemon) == set(PAGES)


async def test_a_loss_of_the_handle_before_is_not_believed(make_agent: MakeAgent, make_app: MakeApp) -> None:
    """A holder of base pages was away for too long, and is back: the sandbox has a new handle by then."""
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    assert entry.evicted is not None
    await rebind(agent, entry, entry.evicted)
    daemon.driver.post(handle.path, "lost")  # type: ignore[attr-defined]
    daemon.driver.post(handle.path, "process_gone")  # type: ignore[attr-defined]
    await asyncio.sleep(0.1)
    assert handlers.get(agent, "s1").state is S.DEDUP
    daemon.driver.handles[1].state = "lost"  # type: ignore[attr-defined]
    daemon.driver.post(handle.path, "lost")  # type: ignore[attr-defined]
    await until(lambda: handlers.get(agent, "s1").state is S.LOST, "this one is its own")


async def test_a_sleeper_is_weighed_now_and_then(make_agent: MakeAgent, make_app: MakeApp) -> None:
    """New memory of a program that sleeps is told by nothing else."""
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    assert entry.evicted is not None
    del handle.evict_result["resident_bytes"]  # measured, as of processes
    touch(handle, 3)
    entry.evicted.weighed_s = agent.clock.now_s()
    before = entry.kept_bytes
    await touches.look(agent)
    assert entry.kept_bytes == before
    entry.evicted.weighed_s -= touches.WEIGH_S
    await touches.look(agent)  # or the agent's own, which has begun
    held_bytes = entry.evicted.file.file_bytes + entry.subject.private_bytes()
    await until(lambda: entry.kept_bytes == held_bytes, "weighed")


def asleep_since(entry: SandboxEntry, seconds: float) -> None:
    """As if it had been put to sleep, and left alone, so long ago."""
    assert entry.evicted is not None
    entry.evicted.since_s -= seconds
    entry.evicted.placed_since_s -= seconds


async def test_a_sleeper_left_alone_gives_back_what_it_touched(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    touch(handle, 3)
    handle.placed_pages = handle.reclaimable_pages = touches.RECLAIM_PAGES_MIN
    assert await touches.look(agent) == []  # it was touched just now
    asleep_since(entry, touches.RECLAIM_AGAIN_S)
    kept_bytes = entry.kept_bytes
    await until(lambda: handle.reclaims > 0, "by the agent's own look")
    await until(lambda: not entry.lock.locked(), "it ends")
    assert kept_bytes - entry.kept_bytes == touches.RECLAIM_PAGES_MIN * native.PAGE_BYTES
    assert handlers.get(agent, "s1").state is S.DEDUP
    _, op = entry.ops[-1]
    assert (op.kind, op.outcome, op.stage_us) == ("reclaim", "done", {"stopped": 7})
    assert op.notes[0].code is NoteCode.RECLAIMED
    assert await touches.look(agent) == []
    assert handle.reclaims == 1


@pytest.mark.parametrize("pages", [0, 1, touches.RECLAIM_PAGES_MIN - 1])
async def test_too_little_is_not_reclaimed_unasked(
    make_agent: MakeAgent, make_app: MakeApp, pages: int
) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    handle.placed_pages = handle.reclaimable_pages = pages
    await touches.look(agent)
    asleep_since(entry, touches.RECLAIM_AGAIN_S)
    assert await touches.look(agent) == []
    report = (await handlers.dedup(agent, "s1")).report  # asked for, it is a reclaim
    assert handle.reclaims == (pages > 0)
    codes = [note.code for note in report.notes]
    assert (NoteCode.RECLAIMED in codes) == (pages > 0)
    assert entry.dedup_count == 1


async def test_a_reclaim_that_fails_is_tried_again_later(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    handle.placed_pages = handle.reclaimable_pages = 500
    handle.reclaim_error = BusyError("a thread does not stop", object="pid 1")
    await touches.look(agent)
    report = (await handlers.dedup(agent, "s1")).report
    assert "does not stop" in str(report.notes[-1])
    assert handlers.get(agent, "s1").state is S.DEDUP
    asleep_since(entry, touches.RECLAIM_QUIET_S)
    assert entry not in await touches.look(agent)
    assert entry.evicted is not None
    asleep_since(entry, touches.RECLAIM_AGAIN_S)
    entry.evicted.reclaim_tried_s -= touches.RECLAIM_AGAIN_S
    handle.reclaim_error = None
    await until(lambda: handle.reclaims > 1 and not entry.lock.locked(), "tried again")
    assert handle.placed_pages < 500


async def test_what_is_left_alone_after_a_reclaim_is_no_tick(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    touch(handle, 3)
    handle.reclaimable_pages = 3
    await handlers.dedup(agent, "s1")
    assert tick_set(daemon) == set(PAGES)
    handle.reclaimed_set = pack_pages(PAGES[1:])  # the first was touched again
    assert entry.evicted is not None
    await touches.learn(agent, entry, entry.evicted, over=True)
    assert tick_set(daemon) == set(PAGES)  # too soon to tell
    entry.evicted.reclaimed_s -= touches.HELD_OUT_S
    await touches.learn(agent, entry, entry.evicted, over=True)
    assert tick_set(daemon) == {PAGES[0]}


async def test_a_part_goes_first_and_all_once_it_was_left_alone(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    handle.placed_pages = handle.reclaimable_pages = 8000
    assert touches.reclaim_pages_max(entry) == 1000
    await turns.reclaim(agent, entry)
    assert (handle.placed_pages, handle.reclaims) == (7000, 1)
    handle.reclaimed_set = pack_pages([(1, n) for n in range(500)])  # half were wanted again
    assert touches.reclaim_pages_max(entry) == 875
    handle.reclaimed_set = pack_pages([(1, n) for n in range(950)])
    await turns.reclaim(agent, entry)
    assert handle.placed_pages == 0
    handle.placed_pages = handle.reclaimable_pages = 130
    handle.reclaimed_set = b""
    assert touches.reclaim_pages_max(entry) == touches.RECLAIM_PAGES_MIN


async def test_a_restore_shows_no_less_than_nothing_kept(make_agent: MakeAgent, make_app: MakeApp) -> None:
    """What it had touched when it was weighed may have been more than what it then held: it woke in between."""
    daemon, handle = await asleep(make_agent, make_app)
    agent, entry = daemon.agent, daemon.agent.entries["s1"]
    entry.weigh_asleep(-42 * native.PAGE_BYTES)
    daemon.driver.hold_restores = True  # type: ignore[attr-defined]
    await handlers.restore(agent, "s1")
    assert handlers.get(agent, "s1").state is S.RESTORING
    assert handlers.get(agent, "s1").kept_bytes == 0
    handle.finish()
    await until(lambda: handlers.get(agent, "s1").state is S.WARM, "restored")
