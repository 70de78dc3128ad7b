"""Dedup'd sandboxes that cannot be taken back now, and why.

What cannot be taken back *now* (no right, no descriptor, no memory, a driver that cannot run here, a peer that is away, a
file of a newer agent) waits in its state with the cause and is tried again, with pauses that grow. A sandbox is LOST
only when bytes are proven absent or wrong; one whose bytes were absent is looked at again too, and is DEDUP again
when they have turned up. What follows on success is the restore op's (Agent.on_taken_back).
"""

from __future__ import annotations

import logging

from medes.agent.agent import Agent
from medes.agent.ops import departure
from medes.agent.ops.take_back import PROVEN, take_back
from medes.agent.sandboxes.sandbox import Pending, SandboxEntry
from medes.errors import BusyError, MedesError, ProcessGoneError
from medes.limits import TAKE_BACK_BUSY_RETRY_S, TAKE_BACK_RETRY_S_FIRST, TAKE_BACK_RETRY_S_MAX
from medes.types import SandboxState as S

log = logging.getLogger(__name__)


def wait(
    agent: Agent, entry: SandboxEntry, error: MedesError, *, path: str = "", wanted: bool = False
) -> None:
    """Marks a dedup'd (or lost) sandbox as waiting for what stands in its way, and goes on trying."""
    pending, error = entry.pending, error.alone()
    agent.observer.waits(error.code)
    if pending is None:
        pending = Pending(path or (entry.evicted.file.path if entry.evicted else ""), error)
        entry.wait_for(pending)
        agent.spawn(_retry(agent, entry, pending), f"take back {entry.id}")
    elif type(pending.error) is type(error):
        pending.error = error
        pending.wanted |= wanted
        return
    pending.error = error
    pending.wanted |= wanted
    log.warning("%s waits, %s: %s", entry.id, entry.state.label, error)
    agent.tell(entry, entry.state, f"waits: {error}")


async def _retry(agent: Agent, entry: SandboxEntry, pending: Pending) -> None:
    """Until it is taken back, or was purged; with pauses that double."""
    pause_s = TAKE_BACK_RETRY_S_FIRST
    while not agent.stopping:
        await agent.clock.sleep(pause_s)
        # A thaw is seen soon: the sandbox may stand still until it is taken back.
        most_s = TAKE_BACK_BUSY_RETRY_S if isinstance(pending.error, BusyError) else TAKE_BACK_RETRY_S_MAX
        pause_s = min(most_s, pause_s * 2)
        async with entry.lock:
            if entry.pending is not pending:
                return
            if entry.state in (S.DEDUP, S.LOST) and await attempt(agent, entry):
                return


async def first_attempt(agent: Agent, entry: SandboxEntry, *, wanted: bool) -> None:
    """For recovery: tries once, and goes on trying where that failed. The caller holds the lock."""
    pending = entry.pending
    assert pending is not None
    try:
        await take_back(agent, entry)
    except ProcessGoneError as error:
        await departure.forget(agent, entry, f"its processes have exited: {error}")
        return
    except MedesError as error:
        if isinstance(error, PROVEN):
            agent.lose(entry, f"not taken back after a restart: {error}", final=False)
        entry.wait_no_more()
        wait(agent, entry, error, path=pending.path, wanted=wanted)
        assert entry.pending is not None
        entry.pending.holder, entry.pending.pins = pending.holder, pending.pins
        return
    entry.wait_no_more()
    if entry.evicted is not None:
        entry.evicted.since_s = agent.clock.now_s()
    agent.spawn(_go_on(agent, entry, wanted), f"resume {entry.id}")


async def _go_on(agent: Agent, entry: SandboxEntry, wanted: bool) -> None:
    async with entry.lock:
        if entry.state is S.DEDUP and entry.evicted is not None and entry.evicted.live is not None:
            await agent.on_taken_back(entry, wanted)


async def attempt(agent: Agent, entry: SandboxEntry) -> bool:
    """Tries once; remembers what comes of it. True when nothing is to be tried any more. The caller holds the lock."""
    pending = entry.pending
    assert pending is not None
    try:
        await take_back(agent, entry)
    except ProcessGoneError as error:
        await departure.forget(agent, entry, f"its processes have exited: {error}")
        return True
    except PROVEN as error:
        agent.lose(entry, f"not taken back: {error}", final=False)
        wait(agent, entry, error)
        return False
    except MedesError as error:
        wait(agent, entry, error)
        return False
    entry.wait_no_more()
    log.warning("%s was taken back; it had waited: %s", entry.id, pending.error)
    await agent.on_taken_back(entry, pending.wanted)
    return True
