"""What every policy holds, whatever it is told and shown: tests/conformance/test_policies.py runs over all that are installed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medes import plugins
from medes.config import AgentSettings
from medes.plugins import Kind
from medes.policy.keep_alive import Action, Periods
from medes.policy.policy import Event, Happening, NodeView, Policy, PolicyClass, View
from medes.types import SandboxState as S

POLICIES = plugins.names(Kind.POLICY)
IDS = [f"s{n}" for n in range(6)]
seconds = st.one_of(st.floats(0, 1e6), st.just(0.0), st.just(math.inf))
ages = st.floats(0, 1e7)
views = st.builds(
    View,
    st.sampled_from(IDS),
    st.sampled_from(S),
    ages,
    st.builds(Periods, seconds, seconds, seconds),
    disabled=st.booleans(),
    idle_wakes=st.integers(0, 1000),
    dedup_failures=st.integers(0, 1000),
    warm_bytes=st.integers(0, 1 << 40),
    purge_kills=st.booleans(),
    function=st.sampled_from(["f", "g"]),
)
nodes = st.builds(
    NodeView,
    st.floats(0, 1e9),
    st.lists(views, max_size=6, unique_by=lambda v: v.sandbox_id),
    st.sampled_from(["", "high: 9 GB of 9 GB"]),
    st.integers(-3, 5),
)
events = st.lists(
    st.builds(
        Event,
        st.floats(0, 1e9),
        st.sampled_from(Happening),
        st.sampled_from(IDS),
        st.sampled_from(["f", "g"]),
        st.sampled_from(S),
        st.floats(0, 1e3),
        st.integers(0, 1 << 40),
    ),
    max_size=20,
).map(lambda told: sorted(told, key=lambda e: e.at_s))


def made(name: str) -> Policy:
    kind: PolicyClass = plugins.load(Kind.POLICY, name)
    return kind.make(AgentSettings(policy=name))


@pytest.mark.parametrize("name", POLICIES)
@given(events, nodes)
def test_steps_are_such_as_an_agent_can_take(name: str, told: list[Event], node: NodeView) -> None:
    policy = made(name)
    for event in told:
        policy.observe(event)
    shown = {v.sandbox_id: v for v in node.sandboxes}
    steps = policy.decide(node)
    assert len({s.sandbox_id for s in steps}) == len(steps)
    for step in steps:
        view = shown[step.sandbox_id]
        assert not view.disabled and step.reason
        if step.action is Action.DEDUP:
            assert view.state is S.WARM
        else:
            assert step.action is Action.PURGE and view.purge_kills and view.state in (S.WARM, S.DEDUP)


@pytest.mark.parametrize("name", POLICIES)
@given(events, nodes)
def test_the_same_calls_get_the_same_answers(name: str, told: list[Event], node: NodeView) -> None:
    one, other = made(name), made(name)
    for event in told:
        one.observe(event)
        other.observe(event)
    assert list(one.decide(node)) == list(other.decide(node))


@pytest.mark.parametrize("name", POLICIES)
@given(events, views, st.floats(0, 1e9))
def test_the_outlook_agrees_with_the_decision_and_changes_nothing(
    name: str, told: list[Event], view: View, now_s: float
) -> None:
    policy, undisturbed = made(name), made(name)
    for event in told:
        policy.observe(event)
        undisturbed.observe(event)
    outlook = policy.outlook(view)
    assert outlook.why and outlook.in_s >= 0 and math.isfinite(outlook.in_s)
    alone = NodeView(now_s, [view])
    steps = list(policy.decide(alone))
    assert steps == list(undisturbed.decide(alone))
    assert (outlook.action is not Action.NONE and outlook.in_s == 0) == bool(steps)
    if steps:
        assert steps[0].action is outlook.action
