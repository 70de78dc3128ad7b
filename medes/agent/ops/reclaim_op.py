"""The reclaim op: a dedup'd sandbox that was touched here and there gives those pages back, and sleeps on.

Only what is back is looked at: what is as it was goes again, its patch still stands in the sandbox file; what was written
stays. So the op costs what was touched, and nothing changes in the journal, the file's patches or the pins.
"""

from __future__ import annotations

from medes.agent.agent import Agent
from medes.agent.node.fault_points import point
from medes.agent.ops import outcomes, touches
from medes.agent.ops.standstill import Standstill
from medes.agent.sandboxes.op_cancel import OpCancel
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.errors import MedesError
from medes.types import Note, NoteCode, ReclaimReport
from medes.types import SandboxState as S


async def run(
    agent: Agent, entry: SandboxEntry, *, reason: str, pages_min: int = 1, pages_max: int = 0
) -> ReclaimReport:
    """The caller holds the lock. Nothing is done for a sandbox that sleeps no more, or with fewer than `pages_min` to take;
    at most `pages_max` go, 0: all.

    Raises busy, traced, process_gone, permission_denied; whatever it raises, the sandbox sleeps on with what it has.
    """
    evicted = entry.evicted
    if entry.state is not S.DEDUP or evicted is None or evicted.live is None:
        return ReclaimReport()
    live, before = evicted.live, entry.reason
    if live.reclaimable_pages < max(pages_min, 1):
        return ReclaimReport()
    await touches.learn(agent, entry, evicted, over=True)
    entry.begin_op(reason)
    cancel = OpCancel(entry.id)
    evicted.reclaim_tried_s = start_s = agent.clock.now_s()
    standstill = Standstill(agent, entry, cancel, evicted.file, "reclaim")
    try:
        work = agent.in_own_thread(live.reclaim, pages_min, pages_max, cancel.flag)
        result, stayed = await standstill.patiently(work)
    except MedesError as error:
        outcomes.reclaim_failed(agent, entry, error)
        raise
    finally:
        if entry.lock.held_up is not None:
            entry.explain(before)
    point("reclaim.taken")
    report = ReclaimReport(
        reclaimed_pages=result.get("reclaimed_pages", 0),
        changed_pages=result.get("changed_pages", 0),
        tick_pages=result.get("tick_pages", 0),
        stopped_us=result.get("stopped_us", 0),
        total_us=int((agent.clock.now_s() - start_s) * 1e6),
        notes=tuple(Note(NoteCode.PAGES_STAY, text) for text in stayed),
    )
    if report.reclaimed_pages:
        evicted.reclaimed_s, evicted.reclaimed_pages = agent.clock.now_s(), report.reclaimed_pages
    outcomes.reclaim_done(agent, entry, report)
    return report
