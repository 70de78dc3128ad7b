"""The restore API as functions of the agent and typed values: what the servicer, the timers and the tests call."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from medes import native
from medes.agent.agent import Agent
from medes.agent.api.registration import Registration, checked_spec
from medes.agent.journal import records
from medes.agent.node.waits import first_of
from medes.agent.ops import departure, members, outcomes, restore_op
from medes.agent.ops.dedup_op import DedupOp
from medes.agent.sandboxes.sandbox import Evicted, SandboxEntry
from medes.agent.sandboxes.states import require_dedup_allowed, require_restore_possible
from medes.agent.sandboxes.users import owner_of
from medes.agent.store import orphans
from medes.clock import Clock
from medes.drivers.driver import Handle
from medes.drivers.subject import Subject
from medes.errors import (
    AlreadyExistsError,
    BusyError,
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    LimitExceededError,
    LostError,
    MedesError,
    PeerUnreachableError,
    ProcessGoneError,
    WrongStateError,
)
from medes.limits import DEDUPS_QUEUED_MAX, RESTORE_WAIT_S, SANDBOXES_PER_NODE_MAX
from medes.policy.policy import Happening
from medes.types import (
    Activity,
    BaseStatus,
    DedupReport,
    DedupResult,
    NodeStatus,
    OrphanFile,
    PurgeCause,
    RestoreReport,
    RestoreResult,
    Sandbox,
)
from medes.types import SandboxState as S

log = logging.getLogger(__name__)

CHILDREN_FILLED_S = 5.0


# --- register ----------------------------------------------------------------------------------------------
async def register(agent: Agent, request: Registration) -> Sandbox:
    """Takes a sandbox on as warm. Registering the same processes under the same id again changes its settings.

    Raises invalid_argument, not_found (unknown pid or cgroup), already_exists, limit_exceeded, unsupported,
    permission_denied (a domain that this node's certificate does not admit).
    """
    # Many pids, or a cgroup to look for, are work of milliseconds: not in the event loop.
    spec, subject = await agent.in_ops(checked_spec, agent.settings, agent.drivers, request)
    agent.require_own_domain(spec.domain)
    known = agent.entries.get(spec.sandbox_id)
    if known is not None:
        if known.subject.parts != subject.parts:
            raise AlreadyExistsError("registered already with other processes", object=spec.sandbox_id)
        known.spec = replace(
            known.spec,
            lifecycle=spec.lifecycle,
            hook_address=spec.hook_address,
            purge_kills=spec.purge_kills,
        )
        agent.policy_stale = True
        agent.journal.post(records.sandbox(known.record()))
        return known.view(agent.clock.now_s())
    if len(agent.entries) >= SANDBOXES_PER_NODE_MAX:
        raise LimitExceededError(f"already {SANDBOXES_PER_NODE_MAX} sandboxes", object=agent.node_id)
    _refuse_shared_parts(agent, subject)
    entry = SandboxEntry(spec, subject, agent.node_id, S.WARM, agent.clock.now_s())
    agent.entries[spec.sandbox_id] = entry
    agent.subjects_of(spec).follow(subject)
    try:
        await members.look_again(agent, [entry])
        await agent.journal.write(records.sandbox(entry.record()))
        entry.weigh(await agent.in_ops(subject.private_bytes))
    except MedesError:
        if agent.entries.get(spec.sandbox_id) is entry:
            await departure.forget(agent, entry, "registration failed")
        raise
    agent.tell(entry, S.UNSPECIFIED, "registered")
    agent.observe(Happening.STATE, entry)
    return entry.view(agent.clock.now_s())


def _refuse_shared_parts(agent: Agent, subject: Subject) -> None:
    taken = {part: entry.id for entry in agent.entries.values() for part in entry.subject.parts}
    for part in subject.parts:
        if part in taken:
            raise AlreadyExistsError(f"it belongs to sandbox {taken[part]}", object=part)


# --- activity ----------------------------------------------------------------------------------------------
async def notify_activity(agent: Agent, sandbox_id: str, activity: Activity) -> Sandbox:
    """BEGUN cancels a dedup op under way and returns only when the sandbox runs; ENDED lets it be idle again.

    Raises not_found, and what a restore raises (busy, lost, peer_unreachable, process_gone).
    """
    found = notify_at_once(agent, sandbox_id, activity)
    if found is not None:
        return found
    entry = agent.entry(sandbox_id)
    await _begun(agent, entry)
    return entry.view(agent.clock.now_s())


def notify_at_once(agent: Agent, sandbox_id: str, activity: Activity) -> Sandbox | None:
    """The same where there is nothing to wait for; None, and nothing done, where there is. Raises not_found."""
    entry = agent.entry(sandbox_id)
    if activity is Activity.BEGUN:
        if entry.state is not S.RUNNING and (entry.state is not S.WARM or entry.lock.locked()):
            return None
        _count_begun(agent, entry)
        if entry.state is S.WARM:
            agent.move(entry, S.RUNNING, "request begun")
    elif activity is Activity.ENDED:
        _ended(agent, entry)
    else:
        raise InvalidArgumentError("activity is BEGUN or ENDED", object=sandbox_id)
    return entry.view(agent.clock.now_s())


def _ended(agent: Agent, entry: SandboxEntry) -> None:
    entry.end_request(agent.clock.now_s())
    agent.observe(Happening.REQUEST_ENDED, entry)
    if entry.requests == 0 and entry.state is S.RUNNING:
        agent.move(entry, S.WARM, "request ended")


def _count_begun(agent: Agent, entry: SandboxEntry) -> None:
    entry.begin_request(agent.clock.now_s())
    agent.observe(Happening.REQUEST_BEGUN, entry)
    if entry.cancel is not None:
        entry.cancel.cancel()


async def _begun(agent: Agent, entry: SandboxEntry) -> None:
    _count_begun(agent, entry)
    try:
        async with entry.lock.turn():
            require_restore_possible(entry.id, entry.state, entry.lost_reason)
            if entry.state is S.DEDUP:
                deadline_s = agent.settings.restore_queue_deadline_ms / 1000
                wake = restore_op.start(
                    agent, entry, eager=False, deadline_s=deadline_s, reason="request begun"
                )
                await agent.to_its_end(wake, f"wake {entry.id}")
            elif entry.state is S.WARM:
                agent.move(entry, S.RUNNING, "request begun")
    except BaseException:
        entry.end_request()
        raise


# --- dedup -------------------------------------------------------------------------------------------------
async def dedup(
    agent: Agent,
    sandbox_id: str,
    *,
    make_base: bool = False,
    hold_frozen: bool | None = None,
    reason: str = "asked for",
) -> DedupResult:
    """Runs a dedup op now. A sandbox that is dedup'd already answers with its last report.

    Raises wrong_state, cancelled, busy, and what the op raises; the sandbox is then warm and runs.
    """
    entry = agent.entry(sandbox_id)
    if agent.dedups_queued >= DEDUPS_QUEUED_MAX:
        raise BusyError(f"{DEDUPS_QUEUED_MAX} dedup ops are queued", object=sandbox_id)
    if hold_frozen is None:
        hold_frozen = bool(agent.settings.for_function(entry.spec.function).hold_frozen)
    report = await agent.to_its_end(
        _dedup(agent, entry, make_base, hold_frozen, reason), f"dedup {sandbox_id}"
    )
    return DedupResult(agent.view(entry), report)


async def _dedup(
    agent: Agent, entry: SandboxEntry, make_base: bool, hold_frozen: bool, reason: str
) -> DedupReport:
    agent.dedups_queued += 1
    try:
        async with agent.dedup_turn:
            await _wait_complete(entry, agent.ending)
            _refuse_at_the_end(agent, entry)
            await entry.lock.take_turn()
            done = entry.last_dedup if entry.state is S.DEDUP else None
            try:
                if done is None:
                    await _require_dedup_allowed(agent, entry)
            except BaseException:
                entry.lock.release()
                raise
            if done is not None:
                entry.lock.release()
                return done
            entry.begin_op(reason)
            agent.move(entry, S.DEDUPING, reason)
            # Held up it goes on without its caller, and without the turn.
            return await entry.lock.unless_held_up(
                agent.spawn(_run_locked(agent, entry, make_base, hold_frozen), f"dedup op {entry.id}")
            )
    finally:
        agent.dedups_queued -= 1


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
            agent.spawn(restore(agent, entry.id, eager=True), f"bring back {entry.id}")
        raise


async def _wait_complete(entry: SandboxEntry, or_else: asyncio.Event | None = None) -> None:
    events = [entry.completed] if or_else is None else [entry.completed, or_else]
    if not await first_of(*events, timeout_s=RESTORE_WAIT_S):
        raise DeadlineExceededError("its restore does not end", object=entry.id)


# --- restore -----------------------------------------------------------------------------------------------
async def restore(
    agent: Agent, sandbox_id: str, *, eager: bool = False, deadline_ms: int = 0
) -> RestoreResult:
    """Wakes a dedup'd sandbox; answers when it runs (eager: when its last page is in). Warm: nothing to do.

    Raises not_found, busy, lost, peer_unreachable, process_gone.
    """
    entry = agent.entry(sandbox_id)
    return await agent.to_its_end(_restore(agent, entry, eager, deadline_ms), f"restore {sandbox_id}")


async def _restore(agent: Agent, entry: SandboxEntry, eager: bool, deadline_ms: int) -> RestoreResult:
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
        await _wait_complete(entry)
        _refuse_stalled(entry, evicted)
        if entry.state is S.LOST:
            raise LostError(entry.lost_reason, object=entry.id, hint="cold-start the function")
        if entry.state is S.PURGED:
            raise ProcessGoneError("its processes have exited", object=entry.id)
    report = (entry.last_restore or RestoreReport()) if was_dedup else RestoreReport()
    return RestoreResult(agent.view(entry), replace(report, was_dedup=was_dedup))


def _refuse_stalled(entry: SandboxEntry, evicted: Evicted | None) -> None:
    """Raises what it waits for when the restore ended where it began."""
    if entry.state is S.DEDUP and entry.evicted is evicted:
        if entry.pending is not None:
            raise entry.pending.error.alone()
        raise PeerUnreachableError("its base pages cannot be read now", object=entry.id)


# --- purge -------------------------------------------------------------------------------------------------
async def purge(
    agent: Agent, sandbox_id: str, reason: str = "asked for", cause: PurgeCause = PurgeCause.ASKED
) -> None:
    """Forgets a sandbox, or ends its processes if it was registered so, whatever its state. One that is only forgotten gets
    all its pages back first: nobody else could give them to it later. Raises not_found, and what a restore raises."""
    entry = agent.entry(sandbox_id)
    await agent.to_its_end(_purge(agent, entry, reason, cause), f"purge {sandbox_id}")


async def _purge(agent: Agent, entry: SandboxEntry, reason: str, cause: PurgeCause) -> None:
    entry.begin_purge()
    try:
        await _end(agent, entry, reason, cause)
    except BaseException as error:
        if isinstance(error, BusyError) and entry.ended_by is not None and entry.lock.held_up is not None:
            # What holds the op holds them, too. Its end finds them gone, and forgets the sandbox.
            told = f"{error.message}; its processes were killed, and end with that"
            raise BusyError(told, object=error.object, hint="thaw it (docker unpause)") from error
        entry.end_by(None)
        raise
    finally:
        entry.end_purge()


async def _end(agent: Agent, entry: SandboxEntry, reason: str, cause: PurgeCause) -> None:
    if entry.cancel is not None:
        entry.cancel.cancel()
    if entry.spec.purge_kills:
        # Before its turn: an op that holds the lock ends with the processes, and with the handle.
        entry.end_by((reason, cause))
        await agent.in_restores(_kill, entry)
        live = entry.evicted.live if entry.evicted is not None else None
        if live is not None:
            await agent.in_restores(_until_unneeded, live, agent.clock)
            await agent.in_restores(live.detach)
    elif not await agent.in_restores(entry.gone):
        await _give_pages_back(agent, entry)
    async with entry.lock.turn():
        if entry.state is S.PURGED:
            return
        dedupd = not entry.spec.purge_kills and entry.state in (S.DEDUP, S.RESTORING)
        if dedupd and not await agent.in_restores(entry.gone):
            raise BusyError("an op came between", object=entry.id, hint="try again")
        await departure.forget(agent, entry, reason, cause)


async def _give_pages_back(agent: Agent, entry: SandboxEntry) -> None:
    async with entry.lock.turn():
        if entry.state is S.DEDUP:
            deadline_s = agent.settings.restore_queue_deadline_ms / 1000
            await restore_op.start(agent, entry, eager=True, deadline_s=deadline_s, reason="to be purged")
        evicted = entry.evicted
    await _wait_complete(entry)
    _refuse_stalled(entry, evicted)


def _kill(entry: SandboxEntry) -> None:
    """(blocks)"""
    evicted = entry.evicted
    entry.subject.end(owner_of(entry.id), evicted.file if evicted is not None else None)


def _until_unneeded(live: Handle, clock: Clock) -> None:
    """(blocks) A child that was forked while pages were out, and of which nobody knows where it is, gets its pages before
    the handle goes; of what was killed the memory is gone at once."""
    deadline_s = clock.now_s() + CHILDREN_FILLED_S
    while live.needed and clock.now_s() < deadline_s:
        clock.wait(0.005)


# --- looking -----------------------------------------------------------------------------------------------
def get(agent: Agent, sandbox_id: str) -> Sandbox:
    """Raises not_found."""
    return agent.view(agent.entry(sandbox_id))


def list_sandboxes(agent: Agent, function: str = "") -> list[Sandbox]:
    made = agent.accounting.unpinned_by_maker()
    wanted = [e for e in agent.entries.values() if not function or e.spec.function == function]
    return [agent.view(e, made) for e in wanted]


async def list_orphans(agent: Agent) -> list[OrphanFile]:
    """Files of shm_dir that the books do not know. Raises io."""
    return await agent.in_ops(orphans.listed, agent.settings.shm_path, agent.orphans)


async def remove_orphan(agent: Agent, name: str) -> None:
    """Removes one for good. Raises not_found for any other file, io."""
    await agent.in_ops(orphans.remove, agent.settings.shm_path, name, agent.orphans)
    log.warning("removed by command: %s", name)


def node_status(agent: Agent) -> NodeStatus:
    usage = agent.accounting.usage()
    return NodeStatus(
        node_id=agent.node_id,
        warm_bytes=usage.warm_bytes,
        kept_bytes=usage.kept_bytes,
        base_bytes=usage.base_bytes,
        memory_limit_bytes=agent.settings.memory_limit_bytes,
        pressure=agent.pressure.text,
        bases=tuple(
            BaseStatus(b.descriptor, b.slab.file_bytes, agent.pins.count(b.base_id))
            for b in agent.bases.bases.values()
        ),
        pages_read_by_transport=dict(agent.remote_pages_by_transport),
        controller_connected=agent.controller.connected,
        live_driver=_live_driver(agent),
        base_pages_read_remote=agent.remote_pages_read,
        page_server_bytes=agent.page_server_bytes(),
        gross_saved_bytes=usage.gross_saved_bytes,
        saved_bytes=usage.saved_bytes,
        functions=agent.accounting.function_usage(),
    )


def _live_driver(agent: Agent) -> str:
    if "live" not in agent.drivers.running:
        return "; ".join(agent.drivers.missing.get("live", ())) or "not installed"
    why, _ = native.missing_seccomp_right()
    return f"available, but not for sandboxes with a seccomp filter: {why}" if why else "available"
