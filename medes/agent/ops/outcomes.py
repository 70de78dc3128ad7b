"""How ops ended: counted, remembered with the sandbox, and logged at the level they deserve, wherever they ran."""

from __future__ import annotations

import logging

from medes.agent.agent import Agent
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.errors import CancelledError, MedesError, ProcessGoneError
from medes.policy.policy import Happening
from medes.types import DedupReport, Note, NoteCode, OpRecord, ReclaimReport, RestoreReport

log = logging.getLogger(__name__)

DEDUP, RESTORE, RECLAIM = "dedup", "restore", "reclaim"


def dedup_done(agent: Agent, entry: SandboxEntry, report: DedupReport) -> None:
    agent.observer.dedup("done", report)
    kept_bytes = report.resident_bytes + report.patch_bytes + report.table_bytes
    agent.observe(Happening.DEDUP, entry, seconds=report.total_us / 1e6, kept_bytes=kept_bytes)
    _remember(
        agent,
        entry,
        OpRecord(
            DEDUP,
            outcome="done",
            reason=entry.op_reason,
            total_us=report.total_us,
            stage_us=dict(report.stage_us),
            notes=report.notes,
        ),
    )


def dedup_failed(
    agent: Agent, entry: SandboxEntry, error: MedesError, stage_us: dict[str, int], notes: list[Note]
) -> None:
    agent.observer.dedup(error.code)
    _failed(agent, entry, DEDUP, error, stage_us, notes)


def reclaim_done(agent: Agent, entry: SandboxEntry, report: ReclaimReport) -> None:
    agent.observer.reclaim("done", report.reclaimed_pages)
    note = Note(NoteCode.RECLAIMED, report.text)
    _remember(
        agent,
        entry,
        OpRecord(
            RECLAIM,
            outcome="done",
            reason=entry.op_reason,
            total_us=report.total_us,
            stage_us={"stopped": report.stopped_us},
            notes=(note, *report.notes),
        ),
    )


def reclaim_failed(agent: Agent, entry: SandboxEntry, error: MedesError) -> None:
    agent.observer.reclaim(error.code)
    _failed(agent, entry, RECLAIM, error, {}, [])


def restore_done(agent: Agent, entry: SandboxEntry, report: RestoreReport) -> None:
    """The last page is in."""
    outcome = "demand" if report.demand_woken else "done"
    agent.observer.restore(outcome, report)
    agent.observe(Happening.RESTORE, entry, seconds=report.waited_us / 1e6)
    total_us = report.waited_us - report.ready_us + report.complete_us
    _remember(
        agent,
        entry,
        OpRecord(
            RESTORE,
            outcome=outcome,
            reason=entry.op_reason,
            total_us=max(total_us, report.complete_us),
            stage_us=dict(report.stage_us),
        ),
    )
    slow_us = agent.settings.restore_slow_ms * 1000
    # Where the background part is slowed down on purpose, only what was waited for counts.
    took_us = report.waited_us if agent.settings.background_bytes_per_s else total_us
    if slow_us and took_us >= slow_us:
        log.warning("%s: slow restore (%s): %s", entry.id, entry.op_reason, restore_text(report))


def restore_failed(
    agent: Agent, entry: SandboxEntry, error: MedesError, stage_us: dict[str, int] | None = None
) -> None:
    agent.observer.restore(error.code)
    _failed(agent, entry, RESTORE, error, stage_us or {}, [])


def hook_failed(agent: Agent, entry: SandboxEntry, problem: str) -> None:
    """After a restore; the op is not undone by it."""
    log.warning("%s: %s", entry.id, problem)
    _remember(
        agent, entry, OpRecord("hook", outcome="function", notes=(Note(NoteCode.HOOK_FAILED, problem),))
    )


def restore_text(report: RestoreReport) -> str:
    """`ran after 3 ms, whole after 80 ms; queue 0 ms, …; 900 pages ahead, 3 faults, …`: what explains a slow one."""
    stages = ", ".join(f"{name} {us / 1000:.1f} ms" for name, us in report.stage_us.items())
    remote = ", ".join(f"{pages} by {transport}" for transport, pages in report.pages_by_transport.items())
    return (
        f"ran after {report.waited_us / 1000:.1f} ms, last page {report.complete_us / 1000:.1f} ms after the first began; "
        f"{stages}; {report.pages_total} pages: {report.pages_prefetched} ahead, {report.faults_demand} faults, "
        f"{report.pages_background} behind; base pages read of other nodes: {remote or 'none'}"
    )


def _failed(
    agent: Agent,
    entry: SandboxEntry,
    kind: str,
    error: MedesError,
    stage_us: dict[str, int],
    notes: list[Note],
) -> None:
    record = OpRecord(
        kind,
        outcome=error.code,
        reason=entry.op_reason,
        message=str(type(error)(error.message, object=error.object)),
        hint=error.hint,
        total_us=sum(stage_us.values()),
        stage_us=dict(stage_us),
        notes=tuple(notes),
    )
    _remember(agent, entry, record)
    # A request that cancels a dedup op, and a process that exits, are how things go.
    expected = isinstance(error, (CancelledError, ProcessGoneError))
    level = logging.INFO if expected else logging.WARNING
    log.log(level, "%s: %s failed (%s): %s: %s", entry.id, kind, entry.op_reason, error.code, error)


def _remember(agent: Agent, entry: SandboxEntry, record: OpRecord) -> None:
    entry.ops.append((agent.clock.now_s(), record))
