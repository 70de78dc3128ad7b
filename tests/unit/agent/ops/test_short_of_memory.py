"""A restore that waits for room in its memory cgroup keeps nobody else from its turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medes.agent.api import handlers
from medes.agent.ops import restore_op
from medes.errors import BusyError, LimitExceededError
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import register, until

MakeApp = Callable[..., App]


async def test_its_turn_is_given_back_while_it_waits(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await make_agent(restores_concurrent_max=1)
    agent, driver = daemon.agent, daemon.driver  # type: ignore[attr-defined]
    for sandbox_id, seed in (("s1", 1), ("s2", 2)):
        await register(daemon, make_app(seed=seed), sandbox_id)
        await handlers.dedup(agent, sandbox_id)
    first, second = driver.handles
    driver.hold_restores = True
    await handlers.restore(agent, "s1")
    with pytest.raises(BusyError):
        await handlers.restore(agent, "s2", deadline_ms=20)
    driver.post(first.path, "short_of_memory")
    await until(lambda: agent.admission.running == 0, "the turn came back")
    await handlers.restore(agent, "s2")
    for handle in (first, second):
        handle.finish()
    await until(lambda: all(e.state is S.WARM for e in agent.entries.values()), "both are whole")
    assert agent.admission.running == 0


async def test_whoever_waits_for_it_hears_what_it_waits_for(
    make_agent: MakeAgent, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = await make_agent()
    agent, driver = daemon.agent, daemon.driver  # type: ignore[attr-defined]
    await register(daemon, make_app())
    await handlers.dedup(agent, "s1")
    (handle,) = driver.handles
    driver.hold_restores = handle.short_of_memory = True
    monkeypatch.setattr(handle, "wait_ready", lambda timeout_s: False)
    with pytest.raises(LimitExceededError, match=restore_op.NO_ROOM):
        await handlers.restore(agent, "s1", eager=True)
    await until(lambda: agent.admission.running == 0, "the turn came back")
    handle.finish()
    await until(lambda: agent.entries["s1"].state is S.WARM, "whole")
