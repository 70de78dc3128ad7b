"""The bases of this node as an operator sees them, and their removal by command."""

from __future__ import annotations

import logging
from pathlib import Path

from medes.agent.agent import Agent
from medes.agent.bases.bases import LocalBase
from medes.agent.bases.pins import UNKNOWN_HOLDER, UNKNOWN_NODE
from medes.agent.journal import records
from medes.agent.ops.base_op import free_base, may_be_needed_unseen, needed_functions, retire_base
from medes.errors import InvalidArgumentError, MedesError, NotFoundError, WrongStateError
from medes.types import BaseStatus

log = logging.getLogger(__name__)


async def list_bases(agent: Agent, function: str = "", domain: str = "") -> list[BaseStatus]:
    """The largest first."""
    wanted = [
        b
        for b in agent.bases.bases.values()
        if (not function or b.descriptor.function == function)
        and (not domain or b.descriptor.domain == domain)
    ]
    made_s = await agent.in_ops(lambda: [_made_s(agent, b) for b in wanted])
    users: dict[int, int] = {}
    for entry in agent.entries.values():
        pins = entry.pins()
        if pins is not None:
            for base_id in pins[1].get(agent.node_id, ()):
                users[base_id] = users.get(base_id, 0) + 1
    found = [_status(agent, b, users.get(b.base_id, 0), s) for b, s in zip(wanted, made_s, strict=True)]
    return sorted(found, key=lambda b: (-b.bytes, b.base.base_id))


def _made_s(agent: Agent, base: LocalBase) -> float:
    try:
        return Path(base.slab.path).stat().st_mtime
    except OSError:
        return agent.clock.wall_s()


def _status(agent: Agent, base: LocalBase, sandboxes: int, made_s: float) -> BaseStatus:
    idle_s = agent.clock.now_s() - base.unneeded_s if base.unneeded_s is not None else 0.0
    return BaseStatus(
        base=base.descriptor,
        bytes=base.slab.file_bytes,
        pins=agent.pins.count(base.base_id),
        pins_by_node=agent.pins.by_node(base.base_id),
        sandboxes=sandboxes,
        made_by=base.sandbox_id,
        maker_is_here=base.sandbox_id in agent.entries,
        age_ms=max(0, int((agent.clock.wall_s() - made_s) * 1000)),
        retired=base.retired,
        unneeded_ms=max(0, int(idle_s * 1000)),
    )


async def remove_base(agent: Agent, base_id: int, *, force: bool = False) -> int:
    """Retires and frees a base that nobody pins; returns its bytes.

    Raises not_found, and wrong_state where somebody pins it, or, without `force`, where sandboxes of its function are here
    or a damaged journal may have forgotten who pins it.
    """
    base = agent.bases.get(base_id)
    name, size = f"base {base_id:016x}", base.slab.file_bytes
    if force:
        _release_unknown(agent, base.descriptor.domain, base_id)
    pins = agent.pins.by_node(base_id)
    if pins:
        who = ", ".join(f"{node} ({count})" for node, count in sorted(pins.items()))
        raise WrongStateError(
            f"pinned by dedup'd sandboxes or ops of {who}",
            object=name,
            hint="restore or remove those first; medes sandbox ls shows those of a node",
        )
    if (base.descriptor.domain, base.descriptor.function) in needed_functions(agent) and not force:
        raise WrongStateError(
            f"sandboxes of {base.descriptor.function} are here: their next dedup ops would make another one",
            object=name,
            hint="force removes it all the same",
        )
    if may_be_needed_unseen(agent) and not force:
        raise WrongStateError(
            "sandbox files that the agent does not know may need it",
            object=name,
            hint="see medes orphans ls; force removes it all the same",
        )
    if not await retire_base(agent, base_id):
        raise WrongStateError("pinned meanwhile: it goes with its last pin", object=name)
    return size


async def unpin_node(agent: Agent, node_id: str, *, force: bool = False) -> tuple[int, int]:
    """Gives up all that a node which will not come back pins here; returns how many pins, and the bytes that are free at
    once. Bases that nobody needs any more go as always.

    Raises invalid_argument, not_found, and, without `force`, wrong_state while that node lives as far as anybody knows.
    """
    if node_id in ("", agent.node_id, UNKNOWN_NODE):
        raise InvalidArgumentError(
            "only another node's pins are given up so",
            object=node_id or "(empty name)",
            hint="medes base rm --force gives up those of (unknown)",
        )
    holders = agent.pins.holders_of_node(node_id)
    if not holders:
        others = ", ".join(n for n in agent.pins.nodes() if n != agent.node_id)
        raise NotFoundError("it pins nothing here", object=node_id, hint=f"nodes that do: {others or 'none'}")
    if not force:
        await _require_silent(agent, node_id)
    count = sum(len(agent.pins.held(node_id, holder)) for holder in holders)
    freed_bytes = 0
    for holder in holders:
        for base_id in agent.pins.unpin(node_id, holder):
            size = agent.bases.bases[base_id].slab.file_bytes if base_id in agent.bases.bases else 0
            freed_bytes += size * free_base(agent, base_id)
    await agent.journal.write(*(records.unpinned(node_id, h) for h in holders), sync=True)
    log.warning("%d pins of node %s were given up by command", count, node_id)
    return count, freed_bytes


async def _require_silent(agent: Agent, node_id: str) -> None:
    hint = (
        "end that node first; force gives up its pins all the same, and its sandboxes that need them are lost"
    )
    silent_s = agent.silent_s(node_id)
    if silent_s is not None and silent_s < agent.settings.page_lease_s:
        raise WrongStateError(f"it was heard of {silent_s:.0f} s ago", object=node_id, hint=hint)
    try:
        lives = await agent.controller.is_member(node_id)
    except MedesError as error:
        raise WrongStateError(
            f"nobody can tell whether it lives: {error.message}", object=node_id, hint=hint
        ) from error
    if lives:
        raise WrongStateError("it is a member of the cluster", object=node_id, hint=hint)


def _release_unknown(agent: Agent, domain: str, base_id: int) -> None:
    """Gives up what was kept because a damaged journal may have forgotten who needs it."""
    holder = f"{UNKNOWN_HOLDER} {domain}"
    if base_id not in agent.pins.held(UNKNOWN_NODE, holder):
        return
    agent.pins.unpin(UNKNOWN_NODE, holder, [base_id])
    left = sorted(agent.pins.held(UNKNOWN_NODE, holder))
    agent.journal.post(records.pins(UNKNOWN_NODE, holder, domain, left))
