"""The purge op: whatever state a sandbox is in, the agent forgets it, and ends its processes where it was registered so."""

from __future__ import annotations

from medes.agent.agent import Agent
from medes.agent.ops import departure, restore_op
from medes.agent.ops.turns import refuse_stalled, wait_complete
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.agent.sandboxes.users import owner_of
from medes.clock import Clock
from medes.drivers.driver import Handle
from medes.errors import BusyError
from medes.types import PurgeCause
from medes.types import SandboxState as S

CHILDREN_FILLED_S = 5.0


async def purge(agent: Agent, entry: SandboxEntry, reason: str, cause: PurgeCause) -> None:
    """One that is only forgotten gets all its pages back first: nobody else could give them to it later. Raises what a
    restore raises. The caller holds no lock."""
    await agent.to_its_end(_purge(agent, entry, reason, cause), f"purge {entry.id}")


async def _purge(agent: Agent, entry: SandboxEntry, reason: str, cause: PurgeCause) -> None:
    if entry.state is S.PURGED:  # between the policy's word and this
        return
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
    await wait_complete(entry)
    refuse_stalled(entry, evicted)


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
