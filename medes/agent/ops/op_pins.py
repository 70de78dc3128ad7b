"""The pins of one dedup op: asked for under a holder id of its own, given back when the op comes to nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from medes import native
from medes.agent.agent import Agent
from medes.agent.journal import records
from medes.agent.journal.records import Record
from medes.agent.node.fault_points import point
from medes.agent.ops.base_op import free_base
from medes.agent.sandboxes.op_cancel import OpCancel
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.errors import CancelledError
from medes.types import BaseDescriptor, NodeEndpoints

Granted = list[list[BaseDescriptor] | BaseException]


@dataclass(slots=True)
class Planned:
    """A plan whose bases are pinned and readable."""

    plan: native.WindowPlan
    bases: native.BaseSet
    descriptors: dict[int, BaseDescriptor] = field(default_factory=dict)  # remote ones
    endpoints: dict[str, NodeEndpoints] = field(default_factory=dict)
    transport_by_peer: dict[str, str] = field(default_factory=dict)


class OpPins:
    """Of a sandbox whose lock the caller holds."""

    def __init__(self, agent: Agent, entry: SandboxEntry, cancel: OpCancel) -> None:
        self.holder = f"{entry.id}.{agent.chance.hex(4)}"
        self.by_node: dict[str, list[int]] = {}  # base ids asked for
        self._agent = agent
        self._entry = entry
        self._cancel = cancel

    def ids(self) -> set[int]:
        return {i for ids in self.by_node.values() for i in ids}

    def committed(self, figures: dict[str, object]) -> Record:
        """The journal's record of the op when it ends well."""
        path = str(self._agent.sandbox_path(self._entry.id))
        return records.dedup(self._entry.id, path, self.holder, self.by_node, figures)

    async def pin(
        self, by_node: dict[str, list[int]], planned: Planned, endpoints: dict[str, NodeEndpoints]
    ) -> None:
        """Journals what is asked for, then asks for it: all, or what a holder raises."""
        agent, domain = self._agent, self._entry.spec.domain
        self.by_node = by_node
        agent.pins_of_ops[self.holder] = (domain, by_node)
        path = str(agent.sandbox_path(self._entry.id))
        await agent.journal.write(records.deduping(self._entry.id, path, self.holder, by_node))
        point("dedup.pins_asked")
        local = agent.bases.grantable(domain, by_node.get(agent.node_id, []), set())
        agent.pins.pin(agent.node_id, self.holder, domain, [b.base_id for b in local])
        for base in local:
            planned.bases.add_local(base.slab)
        remote = {node: ids for node, ids in by_node.items() if node != agent.node_id}
        for node_id in remote:
            if node_id in endpoints:
                agent.peers.learn(endpoints[node_id])
            if node_id in agent.peers.endpoints:
                planned.endpoints[node_id] = agent.peers.endpoints[node_id]
        granted = await self._pin_at(remote)
        for node_id, descriptors in zip(remote, granted, strict=True):
            if isinstance(descriptors, BaseException):
                raise descriptors
            first = remote[node_id][0]
            reader = await self._cancel.unless_cancelled(agent.peers.live_reader(node_id, domain, first))
            planned.transport_by_peer[node_id] = reader.transport
            for descriptor in descriptors:
                # The holder's word on its own base counts, not the registry's.
                planned.descriptors[descriptor.base_id] = descriptor
                add_remote(planned.bases, descriptor, reader)

    async def _pin_at(self, remote: dict[str, list[int]]) -> Granted:
        """What each node answers. Every call has ended before anything is taken back: an unpin must not overtake its pin.
        Of an op that is to end that is done behind it."""
        peers, domain = self._agent.peers, self._entry.spec.domain

        async def ask() -> Granted:
            calls = (peers.pin(node, self.holder, domain, ids) for node, ids in remote.items())
            return await asyncio.gather(*calls, return_exceptions=True)

        asked = self._agent.spawn(ask(), f"pins {self.holder}")

        async def answers() -> Granted:
            return await asyncio.shield(asked)

        try:
            return await self._cancel.unless_cancelled(answers())
        except CancelledError:
            self.by_node = {node: ids for node, ids in self.by_node.items() if node not in remote}
            self._agent.spawn(self._unpin_when_answered(asked, remote), f"unpin {self.holder}")
            raise

    async def _unpin_when_answered(self, asked: asyncio.Task[Any], remote: dict[str, list[int]]) -> None:
        await asyncio.wait({asked})
        unpin(self._agent, self.holder, remote)

    def keep_only(self, used: set[int]) -> dict[str, list[int]]:
        """The pins on bases that no page refers to, for unpin(); the op's own are the others from now on."""
        unused = {n: [b for b in ids if b not in used] for n, ids in self.by_node.items()}
        self.by_node = {n: kept for n, ids in self.by_node.items() if (kept := [b for b in ids if b in used])}
        self._agent.pins_of_ops[self.holder] = (self._entry.spec.domain, self.by_node)
        return unused

    def give_back(self) -> None:
        """All of them; a plan that came to nothing may ask for others."""
        unpin(self._agent, self.holder, self.by_node)
        self.by_node = {}

    def end(self) -> None:
        """The op is over: whoever holds them from now on is known by the sandbox."""
        self._agent.pins_of_ops.pop(self.holder, None)


def add_remote(bases: native.BaseSet, descriptor: BaseDescriptor, reader: native.PageReader) -> None:
    """Adds a peer's base to a set."""
    ranges = [(r.begin, r.end) for r in descriptor.ranges]
    bases.add_remote(descriptor.base_id, descriptor.page_count, ranges, descriptor.value_only, reader)


def unpin(agent: Agent, holder: str, pins: dict[str, list[int]]) -> None:
    """Gives pins back: here at once (bases that were only kept for them go), at peers in the background."""
    for base_id in agent.pins.unpin(agent.node_id, holder, pins.get(agent.node_id, [])):
        free_base(agent, base_id)
    for node_id, ids in pins.items():
        if node_id != agent.node_id and ids:
            agent.spawn(agent.peers.unpin(node_id, holder, ids), f"unpin {holder} at {node_id}")


def own_pins_at(agent: Agent, node_id: str) -> dict[str, tuple[str, list[int]]]:
    """Holder → (domain, base ids) of everything this node needs at a peer, dedup ops under way included."""
    found = {}
    for entry in agent.entries.values():
        known = entry.pins()
        if known is not None and known[1].get(node_id):
            found[known[0]] = (entry.spec.domain, known[1][node_id])
    for holder, (domain, pins) in agent.pins_of_ops.items():
        if pins.get(node_id):
            found[holder] = (domain, pins[node_id])
    return found
