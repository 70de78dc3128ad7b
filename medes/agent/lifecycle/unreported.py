"""Sandboxes whose runtime reports no requests: processor time tells whether they are in use.

A server that nobody asks ticks for some thousandths of a processor, and so it does for a probe now and then. One that works
is not idle, whatever its runtime says of it.
"""

from __future__ import annotations

from medes.agent.agent import Agent
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.errors import MedesError
from medes.types import SandboxState as S


async def look(agent: Agent) -> None:
    """Notes which of them have worked since the last look; a few system calls for each of their processes."""
    watched = [
        e
        for e in agent.entries.values()
        if e.state is S.WARM and not e.reports_requests and not e.lock.locked()
    ]
    if not watched:
        return
    used = await agent.in_restores(lambda: [(e, _cpu_s(e)) for e in watched])
    now_s = agent.clock.now_s()
    for entry, cpu_s in used:
        if entry.state is S.WARM:
            entry.look_at_use(now_s, cpu_s, agent.settings.busy_cpu_ratio)


def _cpu_s(entry: SandboxEntry) -> float | None:
    try:
        return entry.subject.cpu_s()
    except MedesError:
        return None
