"""Whether a sandbox is in use, told by the processor time of its processes and the bytes on its connections."""

from __future__ import annotations

import pytest

from medes.types import SandboxState as S
from tests.unit.agent.sandboxes.test_states import entry


def test_work_makes_a_warm_sandbox_young_again() -> None:
    e = entry()  # since 10.0
    e.look_at_use(12.0, 1.0, 0.05)  # nothing to compare with
    assert e.idle_s(12.0) == 2.0
    e.look_at_use(14.0, 1.05, 0.05)  # a tick
    assert e.idle_s(14.0) == 4.0
    e.look_at_use(16.0, 1.3, 0.05)
    assert e.idle_s(16.0) == 0.0
    assert e.idle_s(17.5) == 1.5


@pytest.mark.parametrize("told", [None, 0.2], ids=["not told", "part of it has ended"])
def test_what_cannot_be_compared_says_nothing(told: float | None) -> None:
    e = entry()
    e.look_at_use(12.0, 1.0, 0.05)
    e.look_at_use(14.0, told, 0.05)
    assert e.idle_s(14.0) == 4.0


def test_a_restore_is_no_work_of_its_own() -> None:
    e = entry()
    e.look_at_use(12.0, 1.0, 0.05)
    e.state = S.RESTORING
    e.move(S.WARM, 20.0)
    e.look_at_use(20.5, 9.0, 0.05)
    assert e.idle_s(21.0) == 1.0


def test_bytes_on_connections_are_use() -> None:
    e = entry()  # since 10.0
    e.look_at_traffic(12.0, {1: 1 << 30}, 1000)  # nothing to compare with
    assert e.idle_s(12.0) == 2.0
    e.look_at_traffic(14.0, {1: (1 << 30) + 2000}, 1000)  # a probe
    assert e.idle_s(14.0) == 4.0
    e.look_at_traffic(16.0, {1: (1 << 30) + 3000, 2: 1001}, 1000)  # a new connection beside it
    assert e.idle_s(16.0) == 0.0
    e.look_at_traffic(18.0, {2: 1001}, 1000)  # the first one is closed
    e.look_at_traffic(20.0, {}, 1000)
    assert e.idle_s(20.0) == 4.0


def test_what_carried_before_a_change_of_state_says_nothing() -> None:
    e = entry()
    e.look_at_traffic(12.0, {}, 1000)
    e.state = S.RESTORING
    e.move(S.WARM, 20.0)
    e.look_at_traffic(20.5, {1: 1 << 20}, 1000)
    assert e.idle_s(21.0) == 1.0
