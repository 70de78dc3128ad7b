"""Making a base: from a captured image to a slab that lookups find and peers may pin."""

from __future__ import annotations

import logging
from pathlib import Path

from medes import native
from medes.agent.agent import Agent
from medes.agent.bases.bases import LocalBase, new_base_id
from medes.agent.journal import records
from medes.agent.journal.records import Record
from medes.agent.node.fault_points import point
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.errors import ControllerUnreachableError, DeadlineExceededError, MedesError
from medes.types import SandboxState

# AdviseBase's reason while another sandbox of the function makes its first base.
BEING_MADE = "being_made"

log = logging.getLogger(__name__)


async def wants_base(agent: Agent, entry: SandboxEntry) -> tuple[bool, str]:
    """Whether this sandbox should become a base: the controller's advice, without one our own knowledge."""
    spec = entry.spec
    if agent.settings.transport == "local":  # what other nodes hold is of no use here
        known = agent.bases.has_base_for(spec.domain, spec.function)
        return not known, "the transport is local; this node has " + ("a base" if known else "no base")
    key = (spec.domain, spec.function)
    try:
        make, reason = await agent.controller.advise(spec.function, spec.domain, spec.sandbox_id)
        advised = agent.base_advised.get(key, "")
        if reason == BEING_MADE and advised not in ("", spec.sandbox_id) and not _dedups(agent, advised):
            # It was a sandbox of ours, and its op did not get there: this one takes its place.
            make, reason = await agent.controller.advise(spec.function, spec.domain, advised)
        elif make:
            agent.base_advised[key] = spec.sandbox_id
        return make, reason
    except (ControllerUnreachableError, DeadlineExceededError):  # one that hangs is as good as away
        known = agent.bases.has_base_for(spec.domain, spec.function)
        return not known, "the controller is away; this node has " + ("a base" if known else "no base")


def _dedups(agent: Agent, sandbox_id: str) -> bool:
    entry = agent.entries.get(sandbox_id)
    return entry is not None and entry.state is SandboxState.DEDUPING


async def publish_base(
    agent: Agent, entry: SandboxEntry, image: native.MemoryImage, pages: list[int]
) -> LocalBase:
    """Writes the pages to a slab, journals it, indexes it and tells the controller.

    The journal knows the base before anybody can pin it. A controller that is away gets it at the next heartbeat.
    Raises store_full, io.
    """
    spec, bases = entry.spec, agent.bases
    room = bases.reserve(len(pages))
    try:
        base, prints = await agent.in_ops(
            bases.build, new_base_id(agent.chance), image, pages, spec.domain, spec.function, spec.sandbox_id
        )
    finally:
        bases.unreserve(room)
    point("dedup.base_built")
    try:
        await agent.journal.write(base_record(base), sync=True)
    except MedesError:
        base.slab.unlink()
        raise
    bases.add(base, prints)
    agent.base_advised.pop((spec.domain, spec.function), None)
    entry.become_base()
    publish = agent.controller.publish(base.descriptor, prints)
    try:
        await (entry.cancel.unless_cancelled(publish) if entry.cancel is not None else publish)
    except MedesError as error:
        log.info("base %016x is not announced yet: %s", base.base_id, error)
    point("dedup.base_published")
    return base


def base_record(base: LocalBase) -> Record:
    """The journal's record of a base."""
    return records.base(base.descriptor.to_json(), base.slab.path, base.sandbox_id)


async def retire_base(agent: Agent, base_id: int) -> bool:
    """Retires a base and frees it when nobody pins it; True when it went. Raises not_found."""
    agent.bases.retire(base_id)
    await agent.journal.write(records.base_retired(base_id), sync=True)
    try:
        await agent.controller.retire(base_id)
    except MedesError as error:
        log.info("base %016x: the controller hears of its retirement later: %s", base_id, error)
    return free_base(agent, base_id)


def free_base(agent: Agent, base_id: int) -> bool:
    """Frees a retired, unpinned base."""
    if not agent.bases.free_if_unpinned(base_id):
        return False
    agent.journal.post(records.base_gone(base_id))
    log.info("base %016x freed", base_id)
    return True


def needed_functions(agent: Agent) -> set[tuple[str, str]]:
    """(domain, function) of every sandbox here: their next dedup ops want these bases."""
    return {(e.spec.domain, e.spec.function) for e in agent.entries.values()}


def may_be_needed_unseen(agent: Agent) -> bool:
    """Whether sandbox files lie there that the agent does not know: they may stand on any base."""
    return any(Path(path).name.startswith("sandbox-") for path in agent.orphans)


async def retire_unneeded(agent: Agent, period_s: float) -> list[int]:
    """Frees the bases that nobody has pinned, with no sandbox of their function here, for a whole period."""
    if may_be_needed_unseen(agent):
        return []
    now_s, keep, due = agent.clock.now_s(), needed_functions(agent), []
    for base in agent.bases.bases.values():
        wanted = (base.descriptor.domain, base.descriptor.function) in keep
        if wanted or agent.pins.is_pinned(base.base_id):
            base.unneeded_s = None
            continue
        base.unneeded_s = now_s if base.unneeded_s is None else base.unneeded_s
        if now_s - base.unneeded_s >= period_s:
            due.append(base.base_id)
    return [base_id for base_id in due if await retire_base(agent, base_id)]


async def retire_unused(agent: Agent, keep_functions: set[tuple[str, str]]) -> list[int]:
    """Retires bases that nobody pins and whose (domain, function) has no sandbox here; returns those freed."""
    if may_be_needed_unseen(agent):
        return []
    unused = [
        b.base_id
        for b in agent.bases.bases.values()
        if not agent.pins.is_pinned(b.base_id)
        and (b.retired or (b.descriptor.domain, b.descriptor.function) not in keep_functions)
    ]
    return [base_id for base_id in unused if await retire_base(agent, base_id)]
