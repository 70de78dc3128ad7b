"""Which periods hold for a sandbox: its own before its function's before the agent's."""

from __future__ import annotations

from medes.config import AgentSettings, FunctionOverrides, check_periods
from medes.policy.keep_alive import Periods
from medes.types import LifecycleSettings


def _seconds(own_ms: int, otherwise_s: float | None) -> float:
    return own_ms / 1000 if own_ms else float(otherwise_s or 0.0)


def periods_in_force(own: LifecycleSettings, override: FunctionOverrides) -> Periods:
    """`override` as `AgentSettings.for_function` fills it in."""
    return Periods(
        _seconds(own.idle_period_ms, override.idle_period_s),
        _seconds(own.keep_alive_period_ms, override.keep_alive_period_s),
        _seconds(own.keep_dedup_period_ms, override.keep_dedup_period_s),
    )


def activity_lease_s(settings: AgentSettings, function: str, own: LifecycleSettings) -> float:
    """How long a sandbox counts as running without a word of its runtime."""
    return _seconds(own.activity_lease_ms, settings.for_function(function).activity_lease_s)


def refuse_contradiction(settings: AgentSettings, function: str, own: LifecycleSettings, object: str) -> None:
    """Raises invalid_argument where a sandbox's periods, with what it leaves to the agent, contradict each other."""
    override = settings.for_function(function)
    if not own.disabled and not override.disabled:
        periods = periods_in_force(own, override)
        check_periods(periods.idle_s, periods.keep_alive_s, object)
