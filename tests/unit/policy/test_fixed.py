"""The policy of fixed periods."""

from __future__ import annotations

import pytest

from medes.config import AgentSettings
from medes.policy.fixed import FixedPeriods, under_pressure
from medes.policy.keep_alive import Action, Periods
from medes.policy.policy import NodeView, View
from medes.types import SandboxState as S

PERIODS = Periods(idle_s=10.0, keep_alive_s=100.0, keep_dedup_s=50.0)


def action_of(view: View) -> Action:
    steps = FixedPeriods.make(AgentSettings()).decide(NodeView(0.0, [view]))
    return steps[0].action if steps else Action.NONE


def view(state: S, age_s: float, **more: object) -> View:
    return View("s1", state, age_s, PERIODS, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (view(S.WARM, 9.9), Action.NONE),
        (view(S.WARM, 10.0), Action.DEDUP),
        (view(S.WARM, 100.0), Action.PURGE),
        (view(S.DEDUP, 49.0), Action.NONE),
        (view(S.DEDUP, 50.0), Action.PURGE),
        (view(S.RUNNING, 1e9), Action.NONE),
        (view(S.LOST, 1e9), Action.NONE),
        (view(S.WARM, 1e9, disabled=True), Action.NONE),
        (view(S.WARM, 19.9, idle_wakes=1), Action.NONE),
        (view(S.WARM, 20.0, idle_wakes=1), Action.DEDUP),
        (view(S.WARM, 39.9, idle_wakes=1, dedup_failures=1), Action.NONE),
        (view(S.WARM, 1e9, purge_kills=False), Action.DEDUP),
        (view(S.DEDUP, 1e9, purge_kills=False), Action.NONE),
    ],
)
def test_decisions(seen: View, action: Action) -> None:
    assert action_of(seen) is action


def test_a_zero_idle_period_backs_off_as_well() -> None:
    eager = View("s1", S.WARM, 0.0, Periods(0.0, 100.0, 100.0))
    assert action_of(eager) is Action.DEDUP
    failed = View("s1", S.WARM, 0.5, Periods(0.0, 100.0, 100.0), dedup_failures=1)
    assert action_of(failed) is Action.NONE


def test_pressure_takes_the_longest_idle_first() -> None:
    views = [
        View("young", S.WARM, 1.0, PERIODS),
        View("old", S.WARM, 5.0, PERIODS),
        View("busy", S.RUNNING, 9.0, PERIODS),
        View("kept", S.WARM, 9.0, PERIODS, disabled=True),
        View("failing", S.WARM, 9.0, PERIODS, dedup_failures=2),
    ]
    assert under_pressure(views, 5) == ["old", "young"]
    assert under_pressure(views, 1) == ["old"]


def test_pressure_starts_no_more_than_the_node_has_turns_for() -> None:
    views = [View(f"s{n}", S.WARM, float(n), PERIODS) for n in (1, 2, 3, 11)]
    steps = FixedPeriods().decide(NodeView(0.0, views, "high", ops_free=2))
    assert [(s.sandbox_id, s.reason) for s in steps] == [
        ("s11", "idle period over"),
        ("s3", "memory pressure: high"),
    ]
    assert len(FixedPeriods().decide(NodeView(0.0, views, "high", ops_free=-1))) == 1
