"""Where base pages come from: what ops read from peers by what carried it, and what a dedup'd sandbox draws on."""

from __future__ import annotations

from collections.abc import Mapping

from medes import native, plugins
from medes.agent.agent import Agent
from medes.agent.sandboxes.sandbox import Evicted
from medes.plugins import Kind


def carriers() -> tuple[str, ...]:
    """What can carry a page on some node of the cluster, as readers call themselves."""
    return ("local", "tcp", "tcp+tls", *plugins.names(Kind.TRANSPORT))


def pages_since(bases: native.BaseSet, before: Mapping[str, int]) -> dict[str, int]:
    """Pages read from peers into the set since `before` was its remote_pages_by_transport."""
    now = bases.remote_pages_by_transport
    return {name: pages - before.get(name, 0) for name, pages in now.items() if pages > before.get(name, 0)}


def count(agent: Agent, pages_by_transport: Mapping[str, int]) -> None:
    """Adds what an op read to the node's counters."""
    for transport, pages in pages_by_transport.items():
        agent.count_remote(transport, pages)


def sandboxes_by_source(agent: Agent, transport: str) -> int:
    """Dedup'd sandboxes with base pages that this transport reaches; may be called from any thread."""
    held = (entry.evicted for entry in list(agent.entries.values()))
    return sum(transport in _sources(evicted, agent.node_id) for evicted in held if evicted is not None)


def _sources(evicted: Evicted, own_node: str) -> set[str]:
    return set(evicted.sources(own_node).values())
