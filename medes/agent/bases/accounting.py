"""What a node has more than it would have without Medes, and whose that is.

    sandbox   saved = warm - kept of a dedup'd one, less its share of base pages; what is kept of a warm one is negative
    node      saved = the same of all its sandboxes, less all base pages it holds (not the shares) and its indexes

A base's bytes are split evenly over those that pin it, sandboxes of other nodes included: these carry their part of it
there, as the holder tells. A base that nobody pins is its maker's. So the sums over all sandboxes of a cluster add up to
the sum over its nodes, but for bases without users or maker, indexes, and what changed since the holders told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from medes.agent.bases.bases import LocalBase
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.limits import FUNCTION_ROWS_MAX
from medes.native import PAGE_BYTES
from medes.types import BaseShare, FunctionUsage, Sandbox
from medes.types import SandboxState as S

if TYPE_CHECKING:
    from medes.agent.agent import Agent

OTHERS = "(others)"  # no name of a function or tenant


def unpinned_by_maker(agent: Agent) -> dict[str, list[LocalBase]]:
    """Sandbox id → the bases it made that nobody pins."""
    found: dict[str, list[LocalBase]] = defaultdict(list)
    for base in list(agent.bases.bases.values()):
        if base.sandbox_id and not agent.pins.users(base.base_id):
            found[base.sandbox_id].append(base)
    return found


def base_shares(
    agent: Agent, entry: SandboxEntry, made: Mapping[str, list[LocalBase]] | None = None
) -> list[BaseShare]:
    """The bases whose memory a sandbox answers for. May be called from any thread."""
    made = unpinned_by_maker(agent) if made is None else made
    shares = [
        BaseShare(b.base_id, agent.node_id, b.slab.file_bytes, 0, b.slab.file_bytes)
        for b in made.get(entry.id, ())
    ]
    pins = entry.pins()
    if pins is not None:
        for node_id, base_ids in list(pins[1].items()):
            shares += [_share(agent, entry, node_id, base_id) for base_id in base_ids]
    return shares


def _share(agent: Agent, entry: SandboxEntry, node_id: str, base_id: int) -> BaseShare:
    if node_id == agent.node_id:
        base = agent.bases.bases.get(base_id)
        size, users = (base.slab.file_bytes, agent.pins.users(base_id)) if base is not None else (0, 0)
    else:
        evicted = entry.evicted
        descriptor = evicted.descriptors.get(base_id) if evicted is not None else None
        pages = descriptor.page_count if descriptor is not None else 0
        size, users = agent.peers.base_uses.get((node_id, base_id), (pages * PAGE_BYTES, 1))
    return BaseShare(base_id, node_id, size, users, size // max(1, users))


def view(agent: Agent, entry: SandboxEntry, made: Mapping[str, list[LocalBase]] | None = None) -> Sandbox:
    """The sandbox as the restore API shows it to who looks."""
    share = sum(s.share_bytes for s in base_shares(agent, entry, made))
    return entry.view(agent.clock.now_s(), share)


def function_usage(agent: Agent) -> tuple[FunctionUsage, ...]:
    """By function and tenant, the largest first and the smallest in one row where there are too many.

    May be called from any thread."""
    made = unpinned_by_maker(agent)
    rows: dict[tuple[str, str], FunctionUsage] = {}
    for entry in list(agent.entries.values()):
        key = (entry.spec.function, entry.spec.tenant)
        one = _one(agent, entry, made)
        rows[key] = _sum(key, (rows[key], one)) if key in rows else one
    ordered = sorted(rows.values(), key=lambda r: (-abs(r.saved_bytes), -r.sandboxes, r.function, r.tenant))
    if len(ordered) > FUNCTION_ROWS_MAX:
        first, rest = ordered[: FUNCTION_ROWS_MAX - 1], ordered[FUNCTION_ROWS_MAX - 1 :]
        ordered = [*first, _sum((OTHERS, OTHERS), rest)]
    return tuple(ordered)


def _one(agent: Agent, entry: SandboxEntry, made: Mapping[str, list[LocalBase]]) -> FunctionUsage:
    share = sum(s.share_bytes for s in base_shares(agent, entry, made))
    dedupd = entry.state is S.DEDUP
    return FunctionUsage(
        entry.spec.function,
        entry.spec.tenant,
        1,
        int(dedupd),
        entry.warm_bytes if dedupd else 0,
        entry.kept_bytes if dedupd else 0,
        share,
        entry.freed_bytes - share,
    )


def _sum(key: tuple[str, str], rows: Iterable[FunctionUsage]) -> FunctionUsage:
    parts = list(rows)
    return FunctionUsage(
        *key,
        sum(r.sandboxes for r in parts),
        sum(r.sandboxes_dedup for r in parts),
        sum(r.warm_bytes for r in parts),
        sum(r.kept_bytes for r in parts),
        sum(r.base_share_bytes for r in parts),
        sum(r.saved_bytes for r in parts),
    )


def shares_by_owner(agent: Agent) -> dict[str, int]:
    """Bytes of the bases held here by who answers for them: sandboxes here, other nodes (and ops under way), nobody."""
    made = unpinned_by_maker(agent)
    here = 0
    for entry in list(agent.entries.values()):
        here += sum(s.share_bytes for s in base_shares(agent, entry, made) if s.node_id == agent.node_id)
    known = set(agent.entries)
    unused = sum(
        b.slab.file_bytes
        for b in list(agent.bases.bases.values())
        if not agent.pins.users(b.base_id) and b.sandbox_id not in known
    )
    return {"sandboxes": here, "peers": max(0, agent.bases.used_bytes - here - unused), "nobody": unused}
