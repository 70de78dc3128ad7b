"""What sandboxes hold with all their memory, measured again when they have been used: it is told where no dedup op follows.

A measurement walks the page tables of a whole sandbox. So each is measured once after a restore, and else at most every
half minute, and only if it was used since.
"""

from __future__ import annotations

from medes.agent.agent import Agent
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.errors import MedesError
from medes.types import SandboxState as S

WEIGH_S = 30.0


async def look(agent: Agent) -> None:
    """Weighs those whose time has come."""
    now_s = agent.clock.now_s()
    due = [
        e
        for e in agent.entries.values()
        if e.state is S.WARM
        and e.weighed_s < e.since_s
        and now_s - e.weighed_s >= WEIGH_S
        and not e.lock.locked()
    ]
    if not due:
        return
    for entry, since_s, warm_bytes in await agent.in_restores(lambda: [_weighed(e) for e in due]):
        if warm_bytes is not None and entry.state is S.WARM and entry.since_s == since_s:
            entry.weigh(warm_bytes, now_s)


def _weighed(entry: SandboxEntry) -> tuple[SandboxEntry, float, int | None]:
    """(blocks)"""
    since_s = entry.since_s
    try:
        return entry, since_s, entry.subject.private_bytes()
    except MedesError:
        return entry, since_s, None
