"""What a sandbox's reports say, for people."""

from __future__ import annotations

from collections.abc import Iterator

from medes.cli.format import maybe_bytes_text
from medes.types import DedupReport, Explanation, OpRecord, RestoreReport, SandboxState
from medes.units import bytes_text, duration_text

# Maps come over the wire in any order. fetch, apply and place are thread time within the others.
_STAGES = (
    *("capture", "survey", "lookup", "advice", "base", "plan", "pin", "encode", "write", "evict"),
    *("queue", "peers", "ready", "complete", "settle", "fetch", "apply", "place"),
)
_ORDER = {name: number for number, name in enumerate(_STAGES)}


def restored_text(report: RestoreReport) -> str:
    """What was waited for and what was not. "Runs" is no "whole": pages that are missing come as they are touched."""
    waited = f"runs again after {duration_text(report.waited_us / 1e6)}"
    ahead = f"{report.pages_prefetched} of {report.pages_total} pages came ahead"
    if not report.complete_us:
        return f"{waited}; {ahead}, the rest comes as it is touched and behind that"
    return (
        f"{waited}, whole after {duration_text((report.waited_us - report.ready_us + report.complete_us) / 1e6)}; "
        f"{ahead}, {report.faults_demand} as they were touched, the rest behind"
    )


def saved_text(report: DedupReport) -> str:
    """What a dedup op saved. An agent that does not know shares of base pages tells what it saved without them."""
    ratio = report.saved_bytes / report.warm_bytes if report.warm_bytes else 0.0
    saved = f"{bytes_text(report.saved_bytes)} saved"
    if report.gross_saved_bytes is None or report.base_share_bytes is None:
        return f"{saved} gross ({ratio:.1%}), its share of base pages unknown (an older agent)"
    return (
        f"{saved} ({ratio:.1%}): {bytes_text(report.gross_saved_bytes)} gross, "
        f"{bytes_text(report.base_share_bytes)} of base pages its share"
    )


def explanation(found: Explanation) -> list[str]:
    """Lines: state and reason, identity, memory, base pages, what is next, the last ops."""
    s = found.sandbox
    lines = [f"{s.sandbox_id}: {s.state.label} for {duration_text(s.state_age_ms / 1000)}: {found.reason}"]
    pids = ", ".join(map(str, s.pids)) or "of its cgroup"
    what = f"subject {s.subject}" if s.subject else f"pids {pids}"
    lines.append(
        f"  is         function {s.function}, tenant {s.tenant}, domain {s.domain}, driver {s.driver}, {what}"
    )
    if s.waiting:
        lines.append(f"  waits      {s.waiting}")
    lines.append(f"  holds      {_holds(found)}")
    for b in found.bases:
        users = f"shared by {b.users}" if b.users else "made by it, used by nobody"
        lines.append(
            f"  base       {bytes_text(b.share_bytes)} of {b.base_id:016x} at {b.node_id} "
            f"({bytes_text(b.base_bytes)}, {users})"
        )
    lines.append(
        f"  saved      {maybe_bytes_text(s.saved_bytes)}, its share of base pages taken off; "
        f"on average {maybe_bytes_text(s.recent_saved_bytes)} over ten minutes, {maybe_bytes_text(s.mean_saved_bytes)} ever"
    )
    lines.append(f"  next       {_next(found)}")
    lines.append(f"  periods    {_periods(found)}")
    if found.requests:
        lines.append(f"  requests   {found.requests} begun and not ended")
    lines.append(f"  counts     {s.dedup_count} dedup ops, {s.restore_count} restores")
    for op in found.ops:
        lines += _op(op)
    return lines


def _holds(found: Explanation) -> str:
    s = found.sandbox
    parts = [f"warm {bytes_text(s.warm_bytes)}"]
    if s.state in (SandboxState.DEDUP, SandboxState.RESTORING):
        kinds = (
            ("patches", found.patch_bytes),
            ("table", found.table_bytes),
            ("resident", found.resident_bytes - s.tick_bytes - s.touched_bytes),
            ("tick set", s.tick_bytes),
            ("touched since", s.touched_bytes),
        )
        parts.append("kept " + ", ".join(f"{bytes_text(size)} {kind}" for kind, size in kinds))
    if found.previous_bytes:
        parts.append(f"{bytes_text(found.previous_bytes)} of its last dedup, for the next one")
    return "; ".join(parts)


def _next(found: Explanation) -> str:
    if found.next_action == "none":
        return f"nothing of itself: {found.next_reason}"
    return f"{found.next_action} in {duration_text(found.next_in_ms / 1000)}: {found.next_reason}"


def _periods(found: Explanation) -> str:
    own = found.lifecycle
    names = ("idle", "keep-alive", "keep-dedup", "activity lease")
    values = (own.idle_period_ms, own.keep_alive_period_ms, own.keep_dedup_period_ms, own.activity_lease_ms)
    told = ", ".join(f"{name} {duration_text(ms / 1000)}" for name, ms in zip(names, values, strict=True))
    return told + ("; timers disabled" if own.disabled else "")


def _op(op: OpRecord) -> Iterator[str]:
    known = sorted(op.stage_us.items(), key=lambda stage: _ORDER.get(stage[0], len(_ORDER)))
    stages = ", ".join(f"{name} {duration_text(us / 1e6)}" for name, us in known)
    took = f" in {duration_text(op.total_us / 1e6)}" if op.total_us else ""
    yield f"  {duration_text(op.age_ms / 1000)} ago  {op.kind} {op.outcome}{took} ({op.reason or 'no reason told'})"
    if op.message:
        yield f"      {op.message}" + (f" ({op.hint})" if op.hint else "")
    if stages:
        yield f"      {stages}"
    for note in op.notes:
        yield f"      {note.code.label}: {note.text}"
