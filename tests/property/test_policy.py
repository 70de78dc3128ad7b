"""Demarcation and fixed periods."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medes.agent.sandboxes.periods import periods_in_force
from medes.config import AgentSettings
from medes.policy.demarcation import BASE_THRESHOLD, needs_base
from medes.policy.keep_alive import Action, Periods, decide
from medes.types import LifecycleSettings, SandboxState

seconds = st.floats(0, 1e6, allow_nan=False)
periods = st.builds(Periods, seconds, seconds, seconds)


@given(st.integers(0, 10**6), st.integers(0, 1000), st.integers(1, 1000))
def test_a_further_base_is_due_exactly_above_the_ratio(dedups: int, bases: int, threshold: int) -> None:
    wanted = needs_base(dedups, bases, threshold)
    assert wanted == (bases == 0 or dedups / bases > threshold)
    if not wanted:
        assert not needs_base(dedups, bases + 1, threshold)


def test_the_papers_threshold() -> None:
    assert BASE_THRESHOLD == 40
    assert not needs_base(40, 1)
    assert needs_base(41, 1)
    with pytest.raises(ValueError):
        needs_base(-1, 0)


@given(st.sampled_from(SandboxState), seconds, periods, st.booleans())
def test_waiting_as_long_as_told_leads_to_an_action(
    state: SandboxState, age_s: float, p: Periods, possible: bool
) -> None:
    decision = decide(state, age_s, p, dedup_possible=possible)
    if state not in (SandboxState.WARM, SandboxState.DEDUP):
        assert (decision.action, decision.due_in_s) == (Action.NONE, None)
        return
    if decision.action is Action.NONE:
        assert decision.due_in_s is not None and decision.due_in_s > 0
        later = decide(state, age_s + decision.due_in_s * 1.000001 + 1e-6, p, dedup_possible=possible)
        assert later.action is not Action.NONE
    if decision.action is Action.DEDUP:
        assert state is SandboxState.WARM and possible
    if decision.action is Action.PURGE:
        assert age_s >= (p.keep_alive_s if state is SandboxState.WARM else p.keep_dedup_s)


def test_the_settings_periods_are_the_papers() -> None:
    p = periods_in_force(LifecycleSettings(), AgentSettings().for_function("f"))
    assert decide(SandboxState.WARM, 59, p).due_in_s == 1
    assert decide(SandboxState.WARM, 60, p).action is Action.DEDUP
    assert decide(SandboxState.WARM, 60, p, dedup_possible=False).due_in_s == 540
    assert decide(SandboxState.WARM, 600, p).action is Action.PURGE
    assert decide(SandboxState.DEDUP, 899, p).action is Action.NONE
    assert decide(SandboxState.DEDUP, 900, p).action is Action.PURGE
    with pytest.raises(ValueError):
        decide(SandboxState.WARM, -1, p)
