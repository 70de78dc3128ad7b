"""Sandboxes whose runtime reports no requests: what they do tells whether they are in use.

    processor time             of its processes
    bytes on connections       a server that sends files, or a store that is written in batches, takes next to no time

A server that nobody asks ticks for some thousandths of a processor, and so it does for a probe now and then, which carries
some hundred bytes. One that works is not idle, whatever its runtime says of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from medes.agent.agent import Agent
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.errors import MedesError
from medes.types import SandboxState as S


async def look(agent: Agent) -> None:
    """Notes which of them have worked since the last look; a few system calls for each process and descriptor of theirs."""
    watched = [
        e
        for e in agent.entries.values()
        if e.state is S.WARM and not e.reports_requests and not e.lock.locked()
    ]
    if not watched:
        return
    used = await agent.in_restores(lambda: [(e, _cpu_s(e)) for e in watched])
    carried = await agent.in_restores(_carried, agent, watched)
    now_s, settings = agent.clock.now_s(), agent.settings
    for entry, cpu_s in used:
        if entry.state is S.WARM:
            entry.look_at_use(now_s, cpu_s, settings.busy_cpu_ratio)
            entry.look_at_traffic(now_s, carried.get(entry.id, {}), settings.busy_bytes_per_s)


def _cpu_s(entry: SandboxEntry) -> float | None:
    try:
        return entry.subject.cpu_s()
    except MedesError:
        return None


def _carried(agent: Agent, watched: list[SandboxEntry]) -> dict[str, Mapping[int, int]]:
    """(blocks) By sandbox."""
    by_driver: dict[str, list[SandboxEntry]] = defaultdict(list)
    for entry in watched:
        by_driver[entry.spec.driver].append(entry)
    found: dict[str, Mapping[int, int]] = {}
    for entries in by_driver.values():
        told = agent.subjects_of(entries[0].spec).carried([e.subject for e in entries])
        found.update(zip([e.id for e in entries], told, strict=True))
    return found
