"""Taking a dedup'd sandbox's pages into this agent's hands: after a restart, or when the holder of base pages is back.

What cannot be taken back *now* (no right, no descriptor, no memory, a driver that cannot run here, a peer that is away, a
file of a newer agent) waits in its state with the cause and is tried again, with pauses that grow. A sandbox is LOST
only when bytes are proven absent or wrong; one whose bytes were absent is looked at again too, and is DEDUP again
when they have turned up.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from medes import native
from medes.agent import journal_state, restore_op
from medes.agent.bases import BaseMeta
from medes.agent.core import Agent, endpoints_from_json
from medes.agent.dedup_op import META_VERSION
from medes.agent.processes import namespace
from medes.agent.sandbox import Evicted, Pending, SandboxEntry
from medes.errors import (
    CorruptError,
    LostError,
    MedesError,
    NotFoundError,
    PermissionDeniedError,
    ProcessGoneError,
    UnsupportedError,
)
from medes.limits import RESTORE_READY_TIMEOUT_S, TAKE_BACK_RETRY_S_FIRST, TAKE_BACK_RETRY_S_MAX
from medes.types import AddressRange, BaseDescriptor
from medes.types import SandboxState as S

log = logging.getLogger(__name__)

# Bytes that are absent or wrong. Every other failure waits.
PROVEN = (NotFoundError, CorruptError, LostError)


def read_meta(file: native.SandboxFile) -> dict[str, Any]:
    """The agent's part of a sandbox file; keys of newer agents are left alone. Raises corrupt, unsupported."""
    try:
        meta = json.loads(file.meta)
        # Version 1 was written without `readable_from`.
        if int(meta.get("readable_from", meta["version"])) > META_VERSION:
            raise UnsupportedError(
                f"written by a newer Medes (meta version {meta['version']})", object=file.path
            )
        return dict(meta)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"meta: {error}", object=file.path) from error


def evicted_of(file: native.SandboxFile, meta: Mapping[str, Any]) -> Evicted:
    """The dedup'd form that a file holds, not taken back yet. Raises corrupt."""
    try:
        return Evicted(
            file,
            native.BaseSet(),
            None,
            str(meta["holder"]),
            {str(node): [int(i) for i in ids] for node, ids in meta["pins"].items()},
            {int(d["base_id"]): _descriptor(d) for d in meta["descriptors"]},
            {e["node_id"]: endpoints_from_json(e) for e in meta["endpoints"]},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"meta: {error}", object=file.path) from error


def _descriptor(data: dict[str, Any]) -> BaseDescriptor:
    ranges = tuple(AddressRange(int(r["begin"]), int(r["end"])) for r in data["ranges"])
    return BaseDescriptor(**{**data, "ranges": ranges})


# --- one attempt -------------------------------------------------------------------------------------------
async def take_back(agent: Agent, entry: SandboxEntry) -> None:
    """Ends with the sandbox's handle in `entry.evicted.live`. The caller holds the lock.

    Raises what stands in the way: PROVEN, process_gone, or what may be different at the next attempt.
    """
    if entry.spec.driver not in agent.drivers:
        raise UnsupportedError(
            f"its driver ({entry.spec.driver}) cannot run here now: {'; '.join(agent.missing) or 'not installed'}",
            object=entry.id,
            hint="; ".join(agent.missing.values()) or "see medes doctor",
        )
    evicted = entry.evicted
    if evicted is None:
        assert entry.pending is not None
        file = await agent.in_restores(native.SandboxFile.open, entry.pending.path)
        meta = read_meta(file)
        require_namespace(meta, entry.id)
        evicted = entry.evicted = evicted_of(file, meta)
        agent.pins.pin(agent.node_id, evicted.holder, entry.spec.domain, evicted.pins.get(agent.node_id, []))
    await _have_own_bases(agent, evicted)
    if entry.state is S.LOST:  # its pins were not kept by a peer that said it had no such base
        for node_id, base_ids in evicted.pins.items():
            if node_id != agent.node_id and base_ids:
                await agent.peers.pin(node_id, evicted.holder, entry.spec.domain, base_ids)
    await restore_op.rebind(agent, entry, evicted)


def require_namespace(meta: Mapping[str, Any], sandbox_id: str) -> None:
    """Raises permission_denied when the sandbox's process ids are those of another PID namespace."""
    made_in, here = str(meta.get("namespace", "")), namespace()
    if made_in and here and made_in != here:
        raise PermissionDeniedError(
            "its processes are in another PID namespace than this agent",
            object=sandbox_id,
            hint="run the agent where it ran before (a container: hostPID)",
        )


async def _have_own_bases(agent: Agent, evicted: Evicted) -> None:
    """Opens slabs of this node that could not be opened when the agent started. Raises why not."""
    for base_id in evicted.pins.get(agent.node_id, []):
        if base_id not in agent.bases.bases:
            await open_base(agent, base_id, str(agent.bases.path_of(base_id)), None)


async def open_base(agent: Agent, base_id: int, path: str, known: BaseMeta | None) -> None:
    """Opens a slab and takes it into the books. Raises as BaseStore.reopen."""
    retired = base_id in agent.journal.state.bases and agent.journal.state.bases[base_id].retired
    base, prints = await agent.in_ops(lambda: agent.bases.reopen(path, known, fingerprints=not retired))
    if base.base_id != base_id:
        raise CorruptError("the slab holds another base", object=path)
    if base_id in agent.bases.bases:  # somebody else was faster
        return
    base.retired = retired
    agent.bases.add(base, prints)
    agent.bases_waiting.discard(base_id)
    agent.orphans.pop(path, None)


# --- waiting -----------------------------------------------------------------------------------------------
def wait(
    agent: Agent, entry: SandboxEntry, error: MedesError, *, path: str = "", wanted: bool = False
) -> None:
    """Marks a dedup'd (or lost) sandbox as waiting for what stands in its way, and goes on trying."""
    pending = entry.pending
    agent.observer.waits(error.code)
    if pending is None:
        pending = entry.pending = Pending(path or (entry.evicted.file.path if entry.evicted else ""), error)
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
        pause_s = min(TAKE_BACK_RETRY_S_MAX, pause_s * 2)
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
        restore_op.forget(agent, entry, f"its processes have exited: {error}")
        return
    except MedesError as error:
        if isinstance(error, PROVEN):
            agent.lose(entry, f"not taken back after a restart: {error}", final=False)
        entry.pending = None
        wait(agent, entry, error, path=pending.path, wanted=wanted)
        assert entry.pending is not None
        entry.pending.holder, entry.pending.pins = pending.holder, pending.pins
        return
    entry.pending = None
    if entry.evicted is not None:
        entry.evicted.since_s = agent.clock.now_s()
    agent.spawn(_go_on(agent, entry, wanted), f"resume {entry.id}")


async def _go_on(agent: Agent, entry: SandboxEntry, wanted: bool) -> None:
    async with entry.lock:
        if entry.state is S.DEDUP and entry.evicted is not None and entry.evicted.live is not None:
            await taken_back(agent, entry, wanted=wanted)


async def attempt(agent: Agent, entry: SandboxEntry) -> bool:
    """Tries once; books what comes of it. True when nothing is to be tried any more. The caller holds the lock."""
    pending = entry.pending
    assert pending is not None
    try:
        await take_back(agent, entry)
    except ProcessGoneError as error:
        restore_op.forget(agent, entry, f"its processes have exited: {error}")
        return True
    except PROVEN as error:
        agent.lose(entry, f"not taken back: {error}", final=False)
        wait(agent, entry, error)
        return False
    except MedesError as error:
        wait(agent, entry, error)
        return False
    entry.pending = None
    log.warning("%s was taken back; it had waited: %s", entry.id, pending.error)
    await taken_back(agent, entry, wanted=pending.wanted)
    return True


async def taken_back(agent: Agent, entry: SandboxEntry, *, wanted: bool) -> None:
    """The handle is there: goes on where the agent before left off. The caller holds the lock."""
    evicted = entry.evicted
    assert evicted is not None
    if entry.state is S.LOST:
        entry.lost_reason = ""
        record = {"path": evicted.file.path, "holder": evicted.holder, "pins": evicted.pins, "figures": {}}
        agent.journal.post({"t": journal_state.DEDUP, "id": entry.id, **record})
        agent.move(entry, S.DEDUP, "its bytes have turned up")
    if evicted.handle.state in ("restoring", "complete"):
        agent.move(entry, S.RESTORING, "a restore that was under way goes on")
        restore_op.resume_watch(agent, entry)
    elif wanted or evicted.file.page_state_counts.get("restored", 0):
        deadline_s = RESTORE_READY_TIMEOUT_S
        await restore_op.start(
            agent, entry, eager=False, deadline_s=deadline_s, reason="it can be restored again"
        )
