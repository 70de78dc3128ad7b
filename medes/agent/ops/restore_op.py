"""The restore op: dedup → restoring → warm or running. The page work is the fault server's; this drives it.

The caller of `start` holds the sandbox's lock until the sandbox runs; the rest comes in behind, watched by a task
that takes the lock again to settle. While a holder of base pages is away the sandbox stays dedup'd: nothing is
lost by waiting, and the caller hears peer_unreachable.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NoReturn

from medes import native
from medes.agent.agent import Agent
from medes.agent.journal import records
from medes.agent.node.admission import Slot
from medes.agent.node.fault_points import point
from medes.agent.ops import hooks, outcomes, page_sources, touches, waiting
from medes.agent.ops.departure import forget
from medes.agent.ops.op_pins import unpin
from medes.agent.ops.take_back import PROVEN, rebind, take_back
from medes.agent.sandboxes.sandbox import Evicted, Previous, SandboxEntry
from medes.agent.sandboxes.working_sets import Page, unpack_pages
from medes.errors import (
    CancelledError,
    DeadlineExceededError,
    LimitExceededError,
    LostError,
    MedesError,
    PeerUnreachableError,
    ProcessGoneError,
    passes,
)
from medes.limits import RESTORE_READY_TIMEOUT_S
from medes.types import RestoreReport
from medes.types import SandboxState as S
from medes.units import duration_text

log = logging.getLogger(__name__)

WAIT_SLICE_S = 30.0
NO_ROOM = "its memory cgroup has no room for its pages"


async def start(agent: Agent, entry: SandboxEntry, *, eager: bool, deadline_s: float, reason: str) -> None:
    """Restores a dedup'd sandbox until it runs (eager: until its last page is in). The caller holds the lock.

    Raises busy (admission), lost, process_gone, and what keeps it waiting (still dedup'd, try again): peer_unreachable
    for one. Whoever is cancelled or fails here, the admission slot goes back.
    """
    start_s = agent.clock.now_s()
    entry.begin_op(reason)
    try:
        slot = await agent.admission.enter_within(deadline_s, entry.id)
    except MedesError as error:
        outcomes.restore_failed(agent, entry, error, {"queue": _us_since(agent, start_s)})
        raise
    with slot:
        queue_us, peers_s = _us_since(agent, start_s), agent.clock.now_s()
        try:
            evicted = await _taken_back(agent, entry)
        except MedesError as error:
            outcomes.restore_failed(
                agent, entry, error, {"queue": queue_us, "peers": _us_since(agent, peers_s)}
            )
            raise
        evicted.waited_us, evicted.slot = 0, slot
        evicted.stage_us = {"queue": queue_us, "peers": _us_since(agent, peers_s)}
        agent.journal.post(records.restoring(entry.id))
        packed, holdout = agent.working_sets.get(entry.spec.domain, entry.spec.function).prefetch()
        try:
            rate = agent.settings.background_bytes_per_s
            # Returns at once, so that telling everybody runs beside the page work and not before it.
            evicted.handle.restore(not eager, packed, rate)
            point("restore.begun")
            agent.move(entry, S.RESTORING, reason)
            ready = await agent.in_restores(evicted.handle.wait_ready, RESTORE_READY_TIMEOUT_S)
        except MedesError as error:
            outcomes.restore_failed(agent, entry, error, evicted.stage_us)
            waits = _waits_for_peer(evicted, error)
            await ended_badly(agent, entry, evicted, error)
            if waits:
                hint = "it is restored when they can be read again; or start cold"
                raise PeerUnreachableError(
                    f"base pages: {error.message}", object=entry.id, hint=hint
                ) from error
            raise
        watch = _watch(agent, entry, evicted, None if eager else holdout, queue_us, slot.hand_over())
        agent.spawn(watch, f"restore {entry.id}")
    if not ready:
        _refuse_late(entry, evicted)
    evicted.waited_us = _us_since(agent, start_s)
    point("restore.ready")
    entry.restore_ready(_report(evicted, queue_us))
    if entry.spec.hook_address:
        await _run_hook(agent, entry, evicted)


async def _taken_back(agent: Agent, entry: SandboxEntry) -> Evicted:
    """The sandbox with its handle and with readers that read: one that waits is tried now, and its caller hears what
    it waits for; a reader that died is replaced."""
    try:
        if entry.evicted is None or entry.evicted.live is None:
            await take_back(agent, entry)
            entry.wait_no_more()
        evicted = entry.evicted
        assert evicted is not None
        stale = False
        for node_id, base_ids in evicted.pins.items():
            if node_id != agent.node_id and base_ids:
                stale |= not await agent.peers.readable(node_id, entry.spec.domain, base_ids[0])
        if stale:
            await rebind(agent, entry, evicted)
        return evicted
    except ProcessGoneError as error:
        await forget(agent, entry, f"its processes have exited: {error}")
        raise
    except PROVEN as error:
        agent.lose(entry, error.message, final=False)
        waiting.wait(agent, entry, error)
        raise LostError(error.message, object=entry.id, hint="cold-start the function") from error
    except MedesError as error:
        if entry.evicted is None or entry.evicted.live is None:
            waiting.wait(agent, entry, error)
        raise


def _refuse_late(entry: SandboxEntry, evicted: Evicted) -> NoReturn:
    live = evicted.live
    if live is not None and live.stats().get("short_of_memory"):
        raise LimitExceededError(
            f"the restore waits: {NO_ROOM}",
            object=entry.id,
            hint="raise the group's limit, or end what fills it",
        )
    raise DeadlineExceededError("the restore goes on, but is late", object=entry.id)


async def _run_hook(agent: Agent, entry: SandboxEntry, evicted: Evicted) -> None:
    dedup_s = max(0.0, agent.clock.now_s() - evicted.since_s)
    body = {"sandbox_id": entry.id, "function": entry.spec.function, "dedup_seconds": dedup_s}
    problem = await hooks.try_call(entry, "after-restore", body)
    if problem:
        outcomes.hook_failed(agent, entry, problem)


async def woken(agent: Agent, entry: SandboxEntry) -> None:
    """The sandbox woke by what it touched; the fault server is restoring it already."""
    async with entry.lock:
        evicted = entry.evicted
        if entry.state is not S.DEDUP or evicted is None:
            return
        # It was said of the handle before this one.
        if evicted.live is None or evicted.live.state == "dormant":
            return
        entry.begin_op("woken by what it touched")
        evicted.stage_us = {}
        agent.journal.post(records.restoring(entry.id))
        agent.move(entry, S.RESTORING, entry.op_reason)
        entry.restore_ready(replace(_report(evicted, 0), demand_woken=True))
        slot = agent.admission.enter()
        agent.spawn(_watch(agent, entry, evicted, evicted.holdout, 0, slot), f"restore {entry.id}")
        if entry.spec.hook_address:
            agent.spawn(_run_hook(agent, entry, evicted), f"hook {entry.id}")


def short_of_memory(entry: SandboxEntry) -> None:
    """Its pages wait for room, for as long as that takes: others, that have room, get the turn of its restore."""
    log.warning("%s: its pages wait: %s", entry.id, NO_ROOM)
    if entry.evicted is not None and entry.evicted.slot is not None:
        entry.evicted.slot.release()


def _resume_watch(agent: Agent, entry: SandboxEntry) -> None:
    """A restore that was under way at the end of the agent before goes on; its end is watched from here."""
    assert entry.evicted is not None
    slot = agent.admission.enter()
    agent.spawn(_watch(agent, entry, entry.evicted, frozenset(), 0, slot), f"restore {entry.id}")


async def _watch(
    agent: Agent,
    entry: SandboxEntry,
    evicted: Evicted,
    holdout: frozenset[Page] | None,
    queue_us: int,
    slot: Slot,
) -> None:
    """Waits for the last page, then settles. Ends when the handle is let go of, as by a purge. Without a `holdout` the
    sandbox does not run before its last page is in, so that what did not fault says nothing."""
    asked = entry.requests > 0
    handle = evicted.live
    evicted.slot = slot
    if handle is not None and handle.stats().get("short_of_memory"):
        slot.release()  # it was told before there was one
    with slot:
        try:
            while handle is not None and not await agent.in_watches(handle.wait_complete, WAIT_SLICE_S):
                if agent.stopping or entry.evicted is not evicted:
                    return
                cause = NO_ROOM if handle.stats().get("short_of_memory") else entry.op_reason
                log.warning("%s: still restoring (%s)", entry.id, cause)
            if handle is None:  # let go of before this began
                return
            point("restore.complete")
            faulted = unpack_pages(handle.working_set())
        except MedesError as error:
            if not isinstance(error, CancelledError):
                outcomes.restore_failed(agent, entry, error, evicted.stage_us)
            async with entry.lock:
                await ended_badly(agent, entry, evicted, error)
            return
    async with entry.lock:
        if entry.evicted is evicted and entry.state is S.RESTORING:
            await _settle(agent, entry, evicted, queue_us)
    await touches.learn(agent, entry, evicted, over=True)
    if holdout is None or not (faulted or asked):
        return
    agent.working_sets.get(entry.spec.domain, entry.spec.function).merge(faulted, holdout)
    await agent.in_restores(agent.working_sets.save, entry.spec.domain, entry.spec.function)


async def _settle(agent: Agent, entry: SandboxEntry, evicted: Evicted, queue_us: int) -> None:
    """The last page is in: nothing of the dedup'd form is needed any more."""
    settle_s = agent.clock.now_s()
    report = _report(evicted, queue_us)
    page_sources.count(agent, report.pages_by_transport)
    # The journal first, as far as it can be written: recovery looks at the process itself where it finds no file.
    try:
        await agent.journal.write(records.warm(entry.id))
    except MedesError as error:
        log.warning("%s: restored, and not journalled yet: %s", entry.id, error)
    if entry.evicted is not evicted:  # purged meanwhile
        return
    entry.come_back(None if agent.pressure.high else Previous(evicted.file, evicted.descriptors))
    point("restore.settled")
    evicted.file.unlink()
    point("restore.unlinked")
    unpin(agent, evicted.holder, evicted.pins)
    report = replace(report, stage_us={**report.stage_us, "settle": _us_since(agent, settle_s)})
    entry.restored(report)
    outcomes.restore_done(agent, entry, report)
    agent.move(entry, entry.idle_state(), f"restored in {duration_text(report.complete_us / 1e6)}")
    if not agent.pressure.high:
        await agent.in_restores(evicted.bases.keep_wanted)


def _us_since(agent: Agent, begin_s: float) -> int:
    return int((agent.clock.now_s() - begin_s) * 1e6)


def _report(evicted: Evicted, queue_us: int) -> RestoreReport:
    stats = evicted.handle.stats()
    remote_pages = page_sources.pages_since(evicted.bases, evicted.remote_pages_before)
    return RestoreReport(
        pages_total=stats.get("pages_total", 0),
        pages_prefetched=stats.get("pages_prefetched", 0),
        faults_demand=stats.get("faults_demand", 0),
        faults_zero=stats.get("faults_zero", 0),
        ready_us=stats.get("ready_us", 0),
        complete_us=stats.get("complete_us", 0),
        remote_bytes=sum(remote_pages.values()) * native.PAGE_BYTES,
        pages_by_transport=remote_pages,
        was_dedup=True,
        demand_woken=bool(stats.get("demand_woken", 0)),
        queue_us=queue_us,
        waited_us=evicted.waited_us or stats.get("ready_us", 0),
        pages_background=stats.get("pages_background", 0),
        stage_us=dict(evicted.stage_us)
        | {name: stats.get(f"{name}_us", 0) for name in ("ready", "complete", "fetch", "apply", "place")},
    )


async def go_on(agent: Agent, entry: SandboxEntry, wanted: bool) -> None:
    """The handle is there: goes on where the agent before left off. The caller holds the lock."""
    evicted = entry.evicted
    assert evicted is not None
    if entry.state is S.LOST:
        entry.turn_up()
        agent.journal.post(records.dedup(entry.id, evicted.file.path, evicted.holder, evicted.pins))
        agent.move(entry, S.DEDUP, "its bytes have turned up")
    if evicted.handle.state in ("restoring", "complete"):
        agent.move(entry, S.RESTORING, "a restore that was under way goes on")
        _resume_watch(agent, entry)
    elif wanted or not await agent.in_restores(entry.subject.pages_out, evicted.file):
        deadline_s = RESTORE_READY_TIMEOUT_S
        await start(agent, entry, eager=False, deadline_s=deadline_s, reason="it can be restored again")


# --- ends that are none ------------------------------------------------------------------------------------
def _waits_for_peer(evicted: Evicted, error: MedesError) -> bool:
    """Whether pages could not be rebuilt only because their holder could not be asked."""
    remote = len(evicted.transport_by_peer) > 0
    return (
        remote
        and isinstance(error, LostError)
        and evicted.live is not None
        and passes(evicted.live.lost_code)
    )


async def ended_badly(agent: Agent, entry: SandboxEntry, evicted: Evicted, error: MedesError) -> None:
    """A restore failed: gone, waiting for a peer, or lost. The caller holds the lock."""
    if entry.evicted is not evicted or entry.state not in (S.DEDUP, S.RESTORING):
        return
    if isinstance(error, ProcessGoneError) or await agent.in_restores(entry.gone):
        await forget(agent, entry, f"its processes have exited: {error}")
    elif isinstance(error, CancelledError):  # the agent ends, and has let go of it
        return
    elif _waits_for_peer(evicted, error) and evicted.live is not None:
        live, evicted.live = evicted.live, None
        await agent.in_restores(live.detach)
        wanted = entry.state is S.RESTORING  # else it sleeps, and was touched
        if wanted:
            agent.move(entry, S.DEDUP, f"it waits for its base pages: {error.message}")
        away = PeerUnreachableError("its base pages cannot be read now", object=entry.id)
        waiting.wait(agent, entry, away, wanted=wanted)
    elif evicted.live is not None:
        agent.lose(entry, error.message if isinstance(error, LostError) else str(error))
