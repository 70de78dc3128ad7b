"""The restore API as functions of the agent and typed values: what the servicer, the timers and the tests call."""

from __future__ import annotations

import logging
from dataclasses import replace

from medes import native
from medes.agent.agent import Agent
from medes.agent.api.registration import Registration, checked_spec
from medes.agent.journal import records
from medes.agent.ops import departure, members, purge_op, restore_op, turns
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.agent.sandboxes.states import require_restore_possible
from medes.agent.store import orphans
from medes.drivers.subject import Subject
from medes.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    LimitExceededError,
    MedesError,
)
from medes.limits import SANDBOXES_PER_NODE_MAX
from medes.policy.policy import Happening
from medes.types import (
    Activity,
    BaseStatus,
    DedupResult,
    NodeStatus,
    OrphanFile,
    PurgeCause,
    RestoreResult,
    Sandbox,
)
from medes.types import SandboxState as S

log = logging.getLogger(__name__)


# --- register ----------------------------------------------------------------------------------------------
async def register(agent: Agent, request: Registration) -> Sandbox:
    """Takes a sandbox on as warm. Registering the same processes under the same id again changes its settings.

    Raises invalid_argument, not_found (unknown pid or cgroup), already_exists, limit_exceeded, unsupported,
    permission_denied (a domain that this node's certificate does not admit).
    """
    # Many pids, or a cgroup to look for, are work of milliseconds: not in the event loop.
    spec, subject = await agent.in_ops(checked_spec, agent.settings, agent.drivers, request, agent.chance)
    agent.domain_rights.require_own(spec.domain)
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
        entry.weigh(await agent.in_ops(subject.private_bytes), agent.clock.now_s())
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
    agent: Agent, sandbox_id: str, *, make_base: bool = False, hold_frozen: bool | None = None
) -> DedupResult:
    """Runs a dedup op now. A sandbox that is dedup'd already answers with its last report.

    Raises wrong_state, cancelled, busy, and what the op raises; the sandbox is then warm and runs.
    """
    entry = agent.entry(sandbox_id)
    report = await turns.dedup(agent, entry, make_base=make_base, hold_frozen=hold_frozen)
    return DedupResult(agent.view(entry), report)


# --- restore -----------------------------------------------------------------------------------------------
async def restore(
    agent: Agent, sandbox_id: str, *, eager: bool = False, deadline_ms: int = 0
) -> RestoreResult:
    """Wakes a dedup'd sandbox; answers when it runs (eager: when its last page is in). Warm: nothing to do.

    Raises not_found, busy, lost, peer_unreachable, process_gone.
    """
    entry = agent.entry(sandbox_id)
    report = await turns.restore(agent, entry, eager=eager, deadline_ms=deadline_ms)
    return RestoreResult(agent.view(entry), report)


# --- purge -------------------------------------------------------------------------------------------------
async def purge(agent: Agent, sandbox_id: str) -> None:
    """Forgets a sandbox, or ends its processes if it was registered so, whatever its state. Raises not_found, and what a
    restore raises."""
    await purge_op.purge(agent, agent.entry(sandbox_id), "asked for", PurgeCause.ASKED)


# --- looking -----------------------------------------------------------------------------------------------
def get(agent: Agent, sandbox_id: str) -> Sandbox:
    """Raises not_found."""
    return agent.view(agent.entry(sandbox_id))


def list_sandboxes(agent: Agent, function: str = "") -> list[Sandbox]:
    made = agent.accounting.unpinned_by_maker()
    wanted = [e for e in agent.entries.values() if not function or e.spec.function == function]
    return [agent.view(e, made) for e in wanted]


async def list_orphans(agent: Agent) -> list[OrphanFile]:
    """Files of shm_dir that the agent does not know. Raises io."""
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
