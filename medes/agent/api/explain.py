"""Why a sandbox is in its state, what it holds, what its last ops did, and what happens next and when."""

from __future__ import annotations

from dataclasses import replace

from medes.agent.agent import Agent
from medes.agent.ops.view import view_of
from medes.agent.sandboxes.periods import activity_lease_s, periods_in_force
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.types import Explanation, LifecycleSettings, OpRecord
from medes.types import SandboxState as S


def explain(agent: Agent, sandbox_id: str) -> Explanation:
    """Raises not_found."""
    entry = agent.entry(sandbox_id)
    shares = agent.accounting.base_shares(entry)
    patch_bytes, table_bytes, resident_bytes = _kept(entry)
    previous = entry.previous
    action, in_s, why = _next(agent, entry)
    return Explanation(
        sandbox=agent.view(entry),
        reason=entry.lost_reason or entry.reason,
        patch_bytes=patch_bytes,
        table_bytes=table_bytes,
        resident_bytes=resident_bytes,
        previous_bytes=previous.file.file_bytes if previous is not None else 0,
        bases=tuple(sorted(shares, key=lambda s: (-s.share_bytes, s.base_id))),
        next_action=action,
        next_in_ms=max(0, int(in_s * 1000)),
        next_reason=why,
        lifecycle=_lifecycle(agent, entry),
        requests=entry.requests,
        idle_wakes=entry.idle_wakes,
        dedup_failures=entry.dedup_failures,
        ops=_ops(agent, entry),
    )


def _ops(agent: Agent, entry: SandboxEntry) -> tuple[OpRecord, ...]:
    now_s = agent.clock.now_s()
    return tuple(
        replace(record, age_ms=max(0, int((now_s - ended_s) * 1000)))
        for ended_s, record in reversed(entry.ops)
    )


def _kept(entry: SandboxEntry) -> tuple[int, int, int]:
    """Patches, table and what is resident; of the file itself, since reports do not outlive the agent."""
    evicted = entry.evicted
    if evicted is None:
        return 0, 0, 0
    patch_bytes = evicted.file.stats["patch_bytes"]
    table_bytes = max(0, evicted.file.file_bytes - patch_bytes)
    resident = entry.kept_bytes - evicted.file.file_bytes if entry.state is S.DEDUP else 0
    return patch_bytes, table_bytes, max(0, resident)


def _lifecycle(agent: Agent, entry: SandboxEntry) -> LifecycleSettings:
    own, override = entry.spec.lifecycle, agent.settings.for_function(entry.spec.function)
    periods = periods_in_force(own, override)
    lease_s = activity_lease_s(agent.settings, entry.spec.function, own)
    return LifecycleSettings(
        idle_period_ms=int(periods.idle_s * 1000),
        keep_alive_period_ms=int(periods.keep_alive_s * 1000),
        keep_dedup_period_ms=int(periods.keep_dedup_s * 1000),
        disabled=own.disabled or bool(override.disabled),
        activity_lease_ms=int(lease_s * 1000),
    )


def _next(agent: Agent, entry: SandboxEntry) -> tuple[str, float, str]:
    """What comes next of itself, in how many seconds, and why."""
    if entry.state is S.RUNNING:
        lease_s = activity_lease_s(agent.settings, entry.spec.function, entry.spec.lifecycle)
        left_s = lease_s - (agent.clock.now_s() - max(entry.heard_s, entry.since_s))
        return "idle", left_s, "its lease on activity ends, if no request begins or ends"
    if entry.lock.held_up is not None:
        return "none", 0.0, f"the op under way is held up: {entry.lock.held_up.message}"
    if entry.state in (S.DEDUPING, S.RESTORING):
        return "none", 0.0, f"the op under way ends ({entry.op_reason})"
    if entry.state not in (S.WARM, S.DEDUP):
        return "none", 0.0, "only Purge is left"
    if entry.pending is not None:
        return "none", 0.0, "it waits to be taken back; tried again all the time"
    outlook = agent.policy.outlook(view_of(agent, entry))
    return outlook.action.value, outlook.in_s, outlook.why
