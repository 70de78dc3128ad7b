"""The restore op: dedup → restoring → warm or running. The page work is the fault server's; this drives it.

The caller of `start` holds the sandbox's lock until the sandbox runs; the rest comes in behind, watched by a task
that takes the lock again to settle. While a holder of base pages is away the sandbox stays dedup'd: nothing is
lost by waiting, and the caller hears peer_unreachable.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from medes import native
from medes.agent import hooks, journal_state, outcomes, page_sources
from medes.agent.core import Agent
from medes.agent.dedup_op import add_remote, unpin
from medes.agent.fault_points import point
from medes.agent.sandbox import Evicted, Previous, SandboxEntry
from medes.agent.working_sets import Page, unpack_pages
from medes.errors import (
    DeadlineExceededError,
    LostError,
    MedesError,
    PeerUnreachableError,
    ProcessGoneError,
    TransientError,
)
from medes.types import RestoreReport
from medes.types import SandboxState as S

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0
WAIT_SLICE_S = 30.0
ADOPT_RETRY_S = 0.5
# Codes of failed page reads that pass when the peer is back.
TRANSIENT = ("peer_unreachable", "unauthenticated", "deadline_exceeded", "busy")


async def start(agent: Agent, entry: SandboxEntry, *, eager: bool, deadline_s: float, reason: str) -> None:
    """Restores a dedup'd sandbox until it runs (eager: until its last page is in). The caller holds the lock.

    Raises busy (admission), peer_unreachable (still dedup'd, try again), lost, process_gone.
    """
    evicted = entry.evicted
    assert evicted is not None
    start_s = time.perf_counter()
    entry.op_reason, evicted.stage_us, evicted.waited_us = reason, {}, 0
    try:
        await agent.admission.acquire(deadline_s, entry.id)
    except MedesError as error:
        outcomes.restore_failed(agent, entry, error, {"queue": _us_since(start_s)})
        raise
    evicted.stage_us["queue"] = _us_since(start_s)
    try:
        peers_s = time.perf_counter()
        await _ensure_bases(agent, entry, evicted)
        evicted.stage_us["peers"] = _us_since(peers_s)
    except BaseException as error:
        agent.admission.release()
        if isinstance(error, MedesError):
            outcomes.restore_failed(agent, entry, error, evicted.stage_us)
        if isinstance(error, ProcessGoneError):
            forget(agent, entry, f"its processes have exited: {error}")
        elif isinstance(error, LostError):
            agent.lose(entry, error.message)
        raise
    queue_us = evicted.stage_us["queue"]
    agent.journal.post({"t": journal_state.RESTORING, "id": entry.id})
    packed, probe = agent.working_sets.get(entry.spec.domain, entry.spec.function).prefetch()
    watch = _watch(agent, entry, evicted, None if eager else probe, queue_us)
    try:
        rate = agent.settings.background_bytes_per_s
        # Returns at once, so that telling everybody runs beside the page work and not before it.
        evicted.handle.restore(not eager, packed, rate)
        point("restore.begun")
        agent.move(entry, S.RESTORING, reason)
        ready = await agent.in_restores(evicted.handle.wait_ready, READY_TIMEOUT_S)
    except MedesError as error:
        outcomes.restore_failed(agent, entry, error, evicted.stage_us)
        watch.close()
        agent.admission.release()
        waits = _waits_for_peer(evicted, error)
        await ended_badly(agent, entry, evicted, error)
        if waits:
            hint = "it is restored when they can be read again; or start cold"
            raise PeerUnreachableError(f"base pages: {error.message}", object=entry.id, hint=hint) from error
        raise
    agent.spawn(watch, f"restore {entry.id}")
    if not ready:
        raise DeadlineExceededError("the restore goes on, but is late", object=entry.id)
    evicted.waited_us = _us_since(start_s)
    point("restore.ready")
    entry.restore_count += 1
    entry.last_restore = _report(evicted, queue_us)
    if entry.spec.hook_address:
        await _run_hook(agent, entry, evicted)


async def _run_hook(agent: Agent, entry: SandboxEntry, evicted: Evicted) -> None:
    dedup_s = max(0.0, agent.clock.now_s() - evicted.since_s)
    body = {"sandbox_id": entry.id, "function": entry.spec.function, "dedup_seconds": dedup_s}
    problem = await hooks.try_call(entry.spec.hook_address, "after-restore", body)
    if problem:
        outcomes.hook_failed(agent, entry, problem)


async def _ensure_bases(agent: Agent, entry: SandboxEntry, evicted: Evicted) -> None:
    """Makes sure that each peer's pages can be read now; a reader that died is replaced."""
    domain = entry.spec.domain
    stale = evicted.live is None
    for node_id, base_ids in evicted.pins.items():
        if node_id != agent.node_id and base_ids:
            stale |= not await agent.peers.probe(node_id, domain, base_ids[0])
    if stale:
        await rebind(agent, entry, evicted)


async def rebind(agent: Agent, entry: SandboxEntry, evicted: Evicted) -> None:
    """Opens a dedup'd sandbox's bases and takes its handle (anew): after a restart of this agent or of a peer.

    Raises peer_unreachable, with the sandbox still dedup'd under its old handle.
    """
    bases, transports = await open_bases(agent, entry.spec.domain, evicted)
    if evicted.live is not None:
        live, evicted.live = evicted.live, None
        await agent.in_restores(live.detach)
    evicted.live = await agent.in_restores(agent.driver_of(entry).adopt, evicted.file, bases)
    evicted.bases, evicted.transport_by_peer = bases, transports
    evicted.remote_pages_before = {}
    arm_wake(agent, entry, evicted)


def arm_wake(agent: Agent, entry: SandboxEntry, evicted: Evicted) -> None:
    """Tells the driver what to prefetch should the sandbox wake by its own fault."""
    packed, evicted.probe = agent.working_sets.get(entry.spec.domain, entry.spec.function).prefetch()
    evicted.handle.set_working_set(packed)


async def open_bases(agent: Agent, domain: str, evicted: Evicted) -> tuple[native.BaseSet, dict[str, str]]:
    """All bases of a dedup'd sandbox as a new set, and the transport to each peer. Raises peer_unreachable."""
    bases, transports = native.BaseSet(), {}
    for node_id, base_ids in evicted.pins.items():
        if not base_ids:
            continue
        if node_id == agent.node_id:
            for base_id in base_ids:
                bases.add_local(agent.bases.get(base_id).slab)
            continue
        if node_id not in agent.peers.endpoints and node_id in evicted.endpoints:
            agent.peers.learn(evicted.endpoints[node_id])
        reader = await agent.peers.live_reader(node_id, domain, base_ids[0])
        transports[node_id] = reader.transport
        for base_id in base_ids:
            add_remote(bases, evicted.descriptors[base_id], reader)
    return bases, transports


async def woken(agent: Agent, entry: SandboxEntry) -> None:
    """The sandbox woke by its own fault; the fault server is restoring it already."""
    async with entry.lock:
        evicted = entry.evicted
        if entry.state is not S.DEDUP or evicted is None:
            return
        agent.admission.enter()
        entry.op_reason, evicted.stage_us = "woken by a fault of its own", {}
        agent.journal.post({"t": journal_state.RESTORING, "id": entry.id})
        agent.move(entry, S.RESTORING, entry.op_reason)
        entry.restore_count += 1
        entry.last_restore = replace(_report(evicted, 0), demand_woken=True)
        agent.spawn(_watch(agent, entry, evicted, evicted.probe, 0), f"restore {entry.id}")
        if entry.spec.hook_address:
            agent.spawn(_run_hook(agent, entry, evicted), f"hook {entry.id}")


async def resume_watch(agent: Agent, entry: SandboxEntry) -> None:
    """For recovery: a restore that was under way goes on; its end is watched from here."""
    assert entry.evicted is not None
    agent.admission.enter()
    agent.spawn(_watch(agent, entry, entry.evicted, frozenset(), 0), f"restore {entry.id}")


async def _watch(
    agent: Agent, entry: SandboxEntry, evicted: Evicted, probe: frozenset[Page] | None, queue_us: int
) -> None:
    """Waits for the last page, then settles. Gives the admission slot back. Without a `probe` the sandbox does not run
    before its last page is in, so that what did not fault says nothing."""
    asked = entry.requests > 0
    try:
        while not await agent.in_watches(evicted.handle.wait_complete, WAIT_SLICE_S):
            if agent.stopping:
                return
            log.info("%s: still restoring", entry.id)
        point("restore.complete")
        faulted = unpack_pages(evicted.handle.working_set())
    except MedesError as error:
        outcomes.restore_failed(agent, entry, error, evicted.stage_us)
        async with entry.lock:
            await ended_badly(agent, entry, evicted, error)
        return
    finally:
        agent.admission.release()
    async with entry.lock:
        if entry.evicted is evicted and entry.state is S.RESTORING:
            await _settle(agent, entry, evicted, queue_us)
    if probe is None or not (faulted or asked):
        return
    agent.working_sets.get(entry.spec.domain, entry.spec.function).merge(faulted, probe)
    await agent.in_restores(agent.working_sets.save, entry.spec.domain, entry.spec.function)


async def _settle(agent: Agent, entry: SandboxEntry, evicted: Evicted, queue_us: int) -> None:
    """The last page is in: nothing of the dedup'd form is needed any more."""
    settle_s = time.perf_counter()
    report = _report(evicted, queue_us)
    page_sources.count(agent, report.pages_by_transport)
    # The journal first: a file that is still there is only an orphan to a restarted agent.
    await agent.journal.write({"t": journal_state.WARM, "id": entry.id})
    entry.evicted = None
    entry.kept_bytes = 0
    if not agent.pressure.high:
        entry.previous = Previous(evicted.file, evicted.descriptors)
    point("restore.settled")
    evicted.file.unlink()
    point("restore.unlinked")
    unpin(agent, evicted.holder, evicted.pins)
    if report.demand_woken and not entry.requests:
        entry.idle_wakes += 1
    report = replace(report, stage_us={**report.stage_us, "settle": _us_since(settle_s)})
    entry.last_restore = report
    outcomes.restore_done(agent, entry, report)
    agent.move(entry, entry.idle_state(), f"restored in {report.complete_us} us")


def _us_since(begin_s: float) -> int:
    return int((time.perf_counter() - begin_s) * 1e6)


def _report(evicted: Evicted, queue_us: int) -> RestoreReport:
    stats = evicted.handle.stats()
    remote_pages = page_sources.pages_since(evicted.bases, evicted.remote_pages_before)
    return RestoreReport(
        pages_total=stats.get("pages_total", 0),
        pages_prefetched=stats.get("pages_prefetched", 0),
        faults_demand=stats.get("faults_demand", 0),
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


# --- ends that are none ------------------------------------------------------------------------------------
def _waits_for_peer(evicted: Evicted, error: MedesError) -> bool:
    """Whether pages could not be rebuilt only because their holder could not be asked; the driver says so last."""
    remote = len(evicted.transport_by_peer) > 0
    return (
        remote and isinstance(error, LostError) and error.message.rpartition("(")[2].rstrip(")") in TRANSIENT
    )


async def ended_badly(agent: Agent, entry: SandboxEntry, evicted: Evicted, error: MedesError) -> None:
    """A restore failed: gone, waiting for a peer, or lost. The caller holds the lock."""
    if entry.evicted is not evicted or entry.state not in (S.DEDUP, S.RESTORING):
        return
    if isinstance(error, ProcessGoneError) or not entry.spec.live_roots():
        forget(agent, entry, f"its processes have exited: {error}")
    elif _waits_for_peer(evicted, error) and evicted.live is not None:
        live, evicted.live = evicted.live, None
        await agent.in_restores(live.detach)
        if entry.state is S.RESTORING:
            agent.move(entry, S.DEDUP, f"it waits for its base pages: {error.message}")
        agent.spawn(adopt_later(agent, entry, wanted=True), f"adopt {entry.id}")
    elif evicted.live is not None:
        agent.lose(entry, error.message if isinstance(error, LostError) else str(error))


async def adopt_later(agent: Agent, entry: SandboxEntry, *, wanted: bool) -> None:
    """Takes a dedup'd sandbox's handle as soon as the holders of its base pages answer, and restores it if `wanted`.

    Ends early when somebody else adopted, restored or purged it.
    """
    while not agent.stopping:
        await agent.clock.sleep(ADOPT_RETRY_S)
        async with entry.lock:
            evicted = entry.evicted
            if evicted is None or evicted.live is not None or entry.state is not S.DEDUP:
                return
            try:
                await rebind(agent, entry, evicted)
                if wanted:
                    await start(
                        agent,
                        entry,
                        eager=False,
                        deadline_s=READY_TIMEOUT_S,
                        reason="its base pages are back",
                    )
                return
            except TransientError as error:
                log.info("%s: %s", entry.id, error)
            except MedesError as error:
                agent.lose(entry, f"not taken back: {error}")
                return


def forget(agent: Agent, entry: SandboxEntry, reason: str, kind: str = "exited") -> None:
    """Ends the agent's knowledge of a sandbox: state PURGED, file, pins and journal record go.

    `kind` is for the metrics: asked, timer or exited.
    """
    evicted, entry.evicted = entry.evicted, None
    agent.journal.post({"t": "purged", "id": entry.id})
    if entry.state is not S.PURGED:
        agent.move(entry, S.PURGED, reason)
    agent.entries.pop(entry.id, None)
    agent.observer.purged(kind)
    if evicted is not None:
        if evicted.live is not None:
            # The fault server knows sandboxes by their file's path, which the next one of this id will have too.
            evicted.live.detach()
        evicted.file.unlink()
        unpin(agent, evicted.holder, evicted.pins)
    agent.controller.changed(entry.id)
