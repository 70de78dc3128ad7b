"""Dedup and restore as anybody asks for them, a caller or the policy: one op at a time on a sandbox, each in its turn.

Callers hold no lock. One that hangs up does not end the op.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from medes.agent.agent import Agent
from medes.agent.node.waits import first_of
from medes.agent.ops import departure, outcomes, reclaim_op, restore_op, touches
from medes.agent.ops.dedup_op import DedupOp
from medes.agent.sandboxes.sandbox import Evicted, SandboxEntry
from medes.agent.sandboxes.states import require_dedup_allowed, require_restore_possible
from medes.agent.sandboxes.users import owner_of
from medes.errors import (
    BusyError,
    CancelledError,
    DeadlineExceededError,
    LostError,
    MedesError,
    PeerUnreachableError,
    ProcessGoneError,
    WrongStateError,
)
from medes.limits import DEDUPS_QUEUED_MAX, RESTORE_WAIT_S
from medes.types import DedupReport, Note, NoteCode, RestoreReport
from medes.types import SandboxState as S


# --- dedup -------------------------------------------------------------------------------------------------
async def dedup(
    agent: Agent,
    entry: SandboxEntry,
    *,
    make_base: bool = False,
    hold_frozen: bool | None = None,
    reason: str = "asked for",
) -> DedupReport:
    """Runs a dedup op. One of a sandbox that is dedup'd already is a reclaim of what it touched since, with its last report.

    Raises wrong_state, cancelled, busy, and what the op raises; the sandbox is then warm and runs.
    """
    if agent.dedups_queued >= DEDUPS_QUEUED_MAX:
        raise BusyError(f"{DEDUPS_QUEUED_MAX} dedup ops are queued", object=entry.id)
    if hold_frozen is None:
        hold_frozen = bool(agent.settings.for_function(entry.spec.function).hold_frozen)
    return await agent.to_its_end(_dedup(agent, entry, make_base, hold_frozen, reason), f"dedup {entry.id}")


async def _dedup(
    agent: Agent, entry: SandboxEntry, make_base: bool, hold_frozen: bool, reason: str
) -> DedupReport:
    agent.dedups_queued += 1
    try:
        async with agent.dedup_turn:
            await wait_complete(entry, agent.ending)
            _refuse_at_the_end(agent, entry)
            await entry.lock.take_turn()
            try:
                if not (asleep := entry.state is S.DEDUP):
                    await _require_dedup_allowed(agent, entry)
            except BaseException:
                entry.lock.release()
                raise
            entry.begin_op(reason)
            if asleep:
                work = _reclaim_locked(agent, entry, reason)
            else:
                agent.move(entry, S.DEDUPING, reason)
                work = _run_locked(agent, entry, make_base, hold_frozen)
            # Held up it goes on without its caller, and without the turn.
            return await entry.lock.unless_held_up(agent.spawn(work, f"dedup op {entry.id}"))
    finally:
        agent.dedups_queued -= 1


async def _reclaim_locked(agent: Agent, entry: SandboxEntry, reason: str) -> DedupReport:
    """The last report of a sandbox that is dedup'd already; what it touched since goes again."""
    last = entry.last_dedup or DedupReport(warm_bytes=entry.warm_bytes)
    try:
        report = await reclaim_op.run(agent, entry, reason=reason)
    except MedesError as error:
        return replace(last, notes=(*last.notes, Note(NoteCode.PAGES_STAY, f"not reclaimed: {error}")))
    finally:
        entry.lock.release()
    if not report.total_us:
        return last
    return replace(last, notes=(*last.notes, Note(NoteCode.RECLAIMED, report.text)))


async def reclaim(agent: Agent, entry: SandboxEntry) -> None:
    """Lets a sleeper that was touched, and is left alone by now, give those pages back. Raises what the op raises."""
    async with agent.dedup_turn, entry.lock:
        _refuse_at_the_end(agent, entry)
        await reclaim_op.run(
            agent,
            entry,
            reason="touched, and left alone since",
            pages_min=touches.RECLAIM_PAGES_MIN,
            pages_max=touches.reclaim_pages_max(entry),
        )


def _refuse_at_the_end(agent: Agent, entry: SandboxEntry) -> None:
    if agent.stopping:
        raise BusyError("the agent is stopping", object=entry.id)


async def _require_dedup_allowed(agent: Agent, entry: SandboxEntry) -> None:
    _refuse_at_the_end(agent, entry)
    if entry.leaving:
        raise WrongStateError("the sandbox is being purged", object=entry.id)
    require_dedup_allowed(entry.id, entry.state)
    if (owner := owner_of(entry.id)) is not None:
        # Since Register one of them may have become somebody else's, by a set-uid program.
        await agent.in_ops(entry.subject.require_owner, owner)


async def _run_locked(agent: Agent, entry: SandboxEntry, make_base: bool, hold_frozen: bool) -> DedupReport:
    try:
        return await _run_op(agent, entry, make_base, hold_frozen)
    finally:
        entry.lock.release()


async def _run_op(agent: Agent, entry: SandboxEntry, make_base: bool, hold_frozen: bool) -> DedupReport:
    op = DedupOp(agent, entry, make_base=make_base, hold_frozen=hold_frozen)
    try:
        report = await op.run()
        outcomes.dedup_done(agent, entry, report)
        return report
    except CancelledError as error:
        outcomes.dedup_failed(agent, entry, error, op.stage_us, op.notes)
        raise
    except MedesError as error:
        outcomes.dedup_failed(agent, entry, error, op.stage_us, op.notes)
        entry.dedup_failed()
        if isinstance(error, ProcessGoneError) and await agent.in_restores(entry.gone):
            await departure.forget(agent, entry, "its processes have exited")
        elif entry.state is S.DEDUP:
            agent.spawn(restore(agent, entry, eager=True), f"bring back {entry.id}")
        raise


async def wait_complete(entry: SandboxEntry, or_else: asyncio.Event | None = None) -> None:
    events = [entry.completed] if or_else is None else [entry.completed, or_else]
    if not await first_of(*events, timeout_s=RESTORE_WAIT_S):
        raise DeadlineExceededError("its restore does not end", object=entry.id)


# --- restore -----------------------------------------------------------------------------------------------
async def restore(
    agent: Agent, entry: SandboxEntry, *, eager: bool = False, deadline_ms: int = 0
) -> RestoreReport:
    """Wakes a dedup'd sandbox; returns when it runs (eager: when its last page is in). Warm: nothing to do.

    Raises busy, lost, peer_unreachable, process_gone.
    """
    return await agent.to_its_end(_restore(agent, entry, eager, deadline_ms), f"restore {entry.id}")


async def _restore(agent: Agent, entry: SandboxEntry, eager: bool, deadline_ms: int) -> RestoreReport:
    deadline_s = (deadline_ms or agent.settings.restore_queue_deadline_ms) / 1000
    async with entry.lock.turn():
        require_restore_possible(entry.id, entry.state, entry.lost_reason)
        was_dedup = entry.state in (S.DEDUP, S.RESTORING)
        evicted = entry.evicted
        if entry.state is S.DEDUP:
            await restore_op.start(
                agent, entry, eager=eager, deadline_s=deadline_s, reason="restore asked for"
            )
    if eager:
        await wait_complete(entry)
        refuse_stalled(entry, evicted)
        if entry.state is S.LOST:
            raise LostError(entry.lost_reason, object=entry.id, hint="cold-start the function")
        if entry.state is S.PURGED:
            raise ProcessGoneError("its processes have exited", object=entry.id)
    report = (entry.last_restore or RestoreReport()) if was_dedup else RestoreReport()
    return replace(report, was_dedup=was_dedup)


def refuse_stalled(entry: SandboxEntry, evicted: Evicted | None) -> None:
    """Raises what it waits for when the restore ended where it began."""
    if entry.state is S.DEDUP and entry.evicted is evicted:
        if entry.pending is not None:
            raise entry.pending.error.alone()
        raise PeerUnreachableError("its base pages cannot be read now", object=entry.id)
