"""Taking a dedup'd sandbox's pages into this agent's hands: after a restart, or when the holder of base pages is back.

One attempt, which raises what stands in the way; medes.agent.ops.waiting tries again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medes import native
from medes.agent.agent import Agent, endpoints_from_json
from medes.agent.bases.bases import BaseMeta
from medes.agent.ops import touches
from medes.agent.ops.dedup_file import META_VERSION
from medes.agent.ops.op_pins import add_remote
from medes.agent.sandboxes.sandbox import Evicted, SandboxEntry, SandboxSpec
from medes.errors import (
    CorruptError,
    LostError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)
from medes.types import BaseDescriptor
from medes.types import SandboxState as S

# What JSON of another shape raises.
META_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)

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
    except META_DAMAGED as error:
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
            {int(d["base_id"]): BaseDescriptor.from_json(d) for d in meta["descriptors"]},
            {e["node_id"]: endpoints_from_json(e) for e in meta["endpoints"]},
        )
    except META_DAMAGED as error:
        raise CorruptError(f"meta: {error}", object=file.path) from error


def at_home(agent: Agent, pins: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Pins with those on this node's own bases under the name that it has now: it may have had another one."""
    found: dict[str, list[int]] = {}
    for node_id, base_ids in pins.items():
        for base_id in base_ids:
            own = base_id in agent.bases.bases or base_id in agent.bases.waiting
            found.setdefault(agent.node_id if own else node_id, []).append(base_id)
    return found


# --- one attempt -------------------------------------------------------------------------------------------
async def take_back(agent: Agent, entry: SandboxEntry) -> None:
    """Ends with the sandbox's handle in `entry.evicted.live`. The caller holds the lock.

    Raises what stands in the way: PROVEN, process_gone, or what may be different at the next attempt.
    """
    if entry.spec.driver not in agent.drivers.running:
        raise agent.drivers.why_not(entry.spec.driver)
    evicted = entry.evicted
    if evicted is None:
        assert entry.pending is not None
        file = await agent.in_restores(native.SandboxFile.open, entry.pending.path)
        meta = read_meta(file)
        require_place(agent, entry, meta)
        evicted = evicted_of(file, meta)
        entry.put_away(evicted)
        evicted.pins = at_home(agent, evicted.pins)
        agent.pins.pin(agent.node_id, evicted.holder, entry.spec.domain, evicted.pins.get(agent.node_id, []))
    await _have_own_bases(agent, evicted)
    if entry.state is S.LOST:  # its pins were not kept by a peer that said it had no such base
        for node_id, base_ids in evicted.pins.items():
            if node_id != agent.node_id and base_ids:
                await agent.peers.pin(node_id, evicted.holder, entry.spec.domain, base_ids)
    await rebind(agent, entry, evicted)


def is_elsewhere(agent: Agent, spec: SandboxSpec, meta: Mapping[str, Any]) -> bool:
    """Whether a file names its sandbox (process ids, above all) as only another place understands."""
    made_in, here = str(meta.get("namespace", "")), agent.subjects_of(spec).place()
    return bool(made_in and here and made_in != here)


def require_place(agent: Agent, entry: SandboxEntry, meta: Mapping[str, Any]) -> None:
    """Raises permission_denied when it is elsewhere."""
    if is_elsewhere(agent, entry.spec, meta):
        raise PermissionDeniedError(
            "its processes are in another PID namespace than this agent",
            object=entry.id,
            hint="run the agent where it ran before (a container: hostPID)",
        )


async def _have_own_bases(agent: Agent, evicted: Evicted) -> None:
    """Opens slabs of this node that could not be opened when the agent started. Raises why not."""
    for base_id in evicted.pins.get(agent.node_id, []):
        if base_id not in agent.bases.bases:
            await open_base(agent, base_id, str(agent.bases.path_of(base_id)), None)


async def open_base(agent: Agent, base_id: int, path: str, known: BaseMeta | None) -> None:
    """Opens a slab and takes it on. Raises as BaseStore.reopen."""
    retired = base_id in agent.journal.state.bases and agent.journal.state.bases[base_id].retired
    base, prints = await agent.in_ops(lambda: agent.bases.reopen(path, known, fingerprints=not retired))
    if base.base_id != base_id:
        raise CorruptError("the slab holds another base", object=path)
    if base_id in agent.bases.bases:  # somebody else was faster
        return
    base.retired = retired
    agent.bases.add(base, prints)
    agent.bases.waiting.discard(base_id)
    agent.orphans.pop(path, None)


async def rebind(agent: Agent, entry: SandboxEntry, evicted: Evicted) -> None:
    """Opens a dedup'd sandbox's bases and takes its handle (anew): after a restart of this agent or of a peer.

    Raises peer_unreachable, with the sandbox still dedup'd under its old handle.
    """
    bases, transports = await open_bases(agent, entry.spec.domain, evicted)
    if evicted.live is not None:
        await touches.learn(agent, entry, evicted)
        live, evicted.live = evicted.live, None
        await agent.in_restores(live.detach)
    evicted.touches_learnt = 0  # of the next handle
    sleep, evicted.holdout, _ = touches.sleep_of(agent, entry)
    adopt = agent.driver_of(entry).adopt
    evicted.live = await agent.in_restores(adopt, entry.subject, evicted.file, bases, sleep)
    evicted.bases, evicted.transport_by_peer = bases, transports
    evicted.remote_pages_before = {}


async def open_bases(agent: Agent, domain: str, evicted: Evicted) -> tuple[native.BaseSet, dict[str, str]]:
    """All bases of a dedup'd sandbox as a new set, and the transport to each peer. Raises peer_unreachable."""
    bases = agent.kept_pages.base_set(domain)
    transports = {}
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
