"""What dedup'd sandboxes touch while nobody uses them: learnt as the tick set of their function, which stays resident from
the next dedup op on, in every instance.

A reclaim (medes.agent.ops.reclaim_op) puts out again what was touched; what is left alone then leaves the set at once.

Tick sets are kept as working sets are (medes.agent.sandboxes.working_sets): each dedup op leaves some pages of the set out,
and one that is not touched by then has lost its reason.
"""

from __future__ import annotations

import contextlib

from medes.agent.agent import Agent
from medes.agent.sandboxes.sandbox import Evicted, SandboxEntry
from medes.agent.sandboxes.working_sets import Page, unpack_pages
from medes.drivers.driver import Sleep
from medes.errors import MedesError
from medes.types import SandboxState as S

# Asleep this long, a program has had its time to touch a page again.
HELD_OUT_S = 60.0
WEIGH_S = 30.0
# A reclaim stops the sandbox for some milliseconds, and what it touches again costs a fault for each page.
RECLAIM_QUIET_S = 10.0
RECLAIM_AGAIN_S = HELD_OUT_S  # so that it is known by then which pages tick
RECLAIM_PAGES_MIN = 128
RECLAIM_PARTS, RECLAIM_TRUST = 8, 0.9


def sleep_of(agent: Agent, entry: SandboxEntry) -> tuple[Sleep, frozenset[Page], frozenset[Page]]:
    """How it shall sleep, what of its working set a wake does not prefetch, and what of its tick set goes all the same."""
    spec = entry.spec
    touches_per_s_max = agent.settings.for_function(spec.function).touches_per_s_max
    assert touches_per_s_max is not None
    working_set, holdout = agent.working_sets.get(spec.domain, spec.function).prefetch()
    tick_set, tick_holdout = agent.tick_sets.get(spec.domain, spec.function).prefetch()
    return Sleep(tick_set, touches_per_s_max, working_set), holdout, tick_holdout


async def learn(agent: Agent, entry: SandboxEntry, evicted: Evicted, *, over: bool = False) -> None:
    """Takes in what was touched since the last time. `over`: the sandbox sleeps no more, or is about to be reclaimed: what
    has been out for its time and was not touched is no tick."""
    assert evicted.live is not None
    touched = unpack_pages(evicted.live.touched())
    new, evicted.touches_learnt = touched[evicted.touches_learnt :], len(touched)
    if not over:
        evicted.tick_holdout -= frozenset(new)
    now_s = agent.clock.now_s()
    held_out = over and now_s - evicted.since_s >= HELD_OUT_S
    reclaimed: frozenset[Page] = frozenset()
    if over and evicted.reclaimed_s and now_s - evicted.reclaimed_s >= HELD_OUT_S:
        reclaimed = frozenset(unpack_pages(evicted.live.reclaimed()))
    if not new and not (held_out and evicted.tick_holdout) and not reclaimed:
        return
    agent.observer.touched(len(new))
    if not agent.pressure.high:
        await agent.in_restores(evicted.bases.keep_wanted)
    tick_set = agent.tick_sets.get(entry.spec.domain, entry.spec.function)
    tick_set.merge(new, evicted.tick_holdout if held_out else frozenset())
    tick_set.forget(reclaimed)
    if held_out:
        evicted.tick_holdout = frozenset()
    await agent.in_restores(agent.tick_sets.save, entry.spec.domain, entry.spec.function)


async def learn_all(agent: Agent) -> None:
    """The agent ends: what its sandboxes have touched will not be touched again in this sleep."""
    for entry in list(agent.entries.values()):
        if entry.state is S.DEDUP and entry.evicted is not None and entry.evicted.live is not None:
            await learn(agent, entry, entry.evicted)


async def look(agent: Agent) -> list[SandboxEntry]:
    """Learns from sandboxes that were touched before the last look, and not since: a program that goes on touching may be
    about to wake. Weighs each now and then. Returns those that a reclaim is worth its stop for."""
    now_s, heavy, quiet = agent.clock.now_s(), [], []
    for entry in list(agent.entries.values()):
        evicted = entry.evicted
        if entry.state is not S.DEDUP or evicted is None or evicted.live is None:
            continue
        placed = evicted.live.placed_pages
        if placed != evicted.placed_seen:
            evicted.placed_seen, evicted.placed_since_s = placed, now_s
        elif evicted.placed_learnt != placed:
            evicted.placed_learnt = placed
            await learn(agent, entry, evicted)
        if _worth_a_reclaim(evicted, now_s):
            quiet.append(entry)
        if now_s - evicted.weighed_s >= WEIGH_S and agent.driver_of(entry).frees:
            evicted.weighed_s = now_s
            heavy.append((entry, evicted))
    if heavy:
        for entry, evicted, touched_bytes, resident_bytes in await agent.in_restores(_weigh, heavy):
            if entry.state is S.DEDUP and entry.evicted is evicted:
                entry.weigh_asleep(evicted.file.file_bytes + resident_bytes - touched_bytes)
    return quiet


def reclaim_pages_max(entry: SandboxEntry) -> int:
    """How many pages go in one reclaim that nobody asked for; 0: all. A probe that needs them again waits for a fault each:
    so it is a part, until one has shown that they are not wanted again."""
    evicted = entry.evicted
    if evicted is None or evicted.live is None:
        return 0
    if evicted.reclaimed_pages:
        left_alone = len(unpack_pages(evicted.live.reclaimed()))
        if left_alone >= RECLAIM_TRUST * evicted.reclaimed_pages:
            return 0
    return max(RECLAIM_PAGES_MIN, evicted.live.reclaimable_pages // RECLAIM_PARTS)


def _worth_a_reclaim(evicted: Evicted, now_s: float) -> bool:
    """The sandbox has been left alone for a while, and enough of it came back."""
    return (
        evicted.live is not None
        and now_s - evicted.placed_since_s >= RECLAIM_QUIET_S
        and now_s - max(evicted.since_s, evicted.reclaim_tried_s) >= RECLAIM_AGAIN_S
        and evicted.live.reclaimable_pages >= RECLAIM_PAGES_MIN
    )


def _weigh(due: list[tuple[SandboxEntry, Evicted]]) -> list[tuple[SandboxEntry, Evicted, int, int]]:
    """(blocks) What each had touched, and then what it holds: new memory too, of which nothing else tells."""
    found = []
    for entry, evicted in due:
        if evicted.live is not None and "resident_bytes" not in evicted.live.evict_result:
            touched_bytes = evicted.touched_bytes
            with contextlib.suppress(MedesError):
                found.append((entry, evicted, touched_bytes, entry.subject.private_bytes()))
    return found
