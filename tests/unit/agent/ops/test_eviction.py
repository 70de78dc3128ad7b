"""Evictions that do not end in time, or end badly. Real freezers: tests/fault/test_held_ops.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from medes.agent.api import handlers
from medes.agent.daemon import AgentDaemon
from medes.agent.ops import standstill
from medes.drivers.process.subject import ProcessSubject
from medes.errors import BusyError, InternalError
from medes.types import Activity
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import register, until

MakeApp = Callable[..., App]


@pytest.fixture
async def held_up(
    make_agent: MakeAgent, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> tuple[AgentDaemon, threading.Event]:
    """A daemon whose sandbox s1 is held up in its eviction, which its caller has heard; and what lets it go."""
    monkeypatch.setattr(standstill, "EVICTION_LOOK_S", 0.01)
    monkeypatch.setattr(standstill, "EVICTION_ANSWER_S", 0.02)
    daemon, gate = await make_agent(), threading.Event()
    daemon.driver.evict_gate = gate  # type: ignore[attr-defined]
    await register(daemon, make_app())
    with pytest.raises(BusyError, match="stands still"):
        await handlers.dedup(daemon.agent, "s1")
    return daemon, gate


def count(daemon: AgentDaemon, outcome: str) -> float:
    return daemon.registry.get_sample_value("medes_agent_dedups_total", {"outcome": outcome}) or 0.0


async def test_an_eviction_that_stands_still_keeps_nobody(
    held_up: tuple[AgentDaemon, threading.Event],
) -> None:
    daemon, gate = held_up
    agent = daemon.agent
    assert agent.entries["s1"].state is S.DEDUPING
    assert daemon.registry.get_sample_value("medes_agent_ops_held_up") == 1
    assert agent.dedups_queued == 0
    assert not agent.dedup_turn.locked()
    with pytest.raises(BusyError, match="stands still"):
        await handlers.notify_activity(agent, "s1", Activity.BEGUN)
    assert agent.entries["s1"].requests == 0
    with pytest.raises(BusyError, match="stands still"):
        await handlers.purge(agent, "s1")
    gate.set()
    # The request that came is as good as gone; the driver ends as that request wished.
    await until(lambda: agent.entries["s1"].state is S.WARM, "its end")
    assert daemon.registry.get_sample_value("medes_agent_ops_held_up") == 0
    assert (count(daemon, "busy"), count(daemon, "cancelled"), count(daemon, "done")) == (0, 1, 0)


async def test_one_that_ends_well_later_is_taken_up(held_up: tuple[AgentDaemon, threading.Event]) -> None:
    daemon, gate = held_up
    waiting = asyncio.create_task(handlers.dedup(daemon.agent, "s1"))
    with pytest.raises(BusyError, match="stands still"):
        await waiting
    gate.set()
    await until(lambda: daemon.agent.entries["s1"].state is S.DEDUP, "its end")
    assert (await handlers.dedup(daemon.agent, "s1")).report.warm_bytes > 0
    assert (count(daemon, "busy"), count(daemon, "done")) == (0, 1)


async def test_a_daemon_ends_beside_it(held_up: tuple[AgentDaemon, threading.Event]) -> None:
    """The stand-in cannot be abandoned, and ends when it is let go."""
    daemon, gate = held_up
    ending = asyncio.create_task(daemon.stop())
    op = daemon.agent.entries["s1"].cancel
    assert op is not None
    await until(lambda: op.abandoned, "told to end")
    gate.set()
    await ending


async def test_what_cannot_be_taken_back_now_is_not_lost(
    make_agent: MakeAgent, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = await make_agent()
    driver = daemon.driver  # type: ignore[attr-defined]
    driver.fail_evict, driver.fail_adopt = InternalError("half-way"), BusyError("its cgroup is frozen")
    monkeypatch.setattr(ProcessSubject, "pages_out", lambda self, file: True)
    await register(daemon, make_app())
    with pytest.raises(InternalError):
        await handlers.dedup(daemon.agent, "s1")
    entry = daemon.agent.entries["s1"]
    assert entry.state is S.DEDUP
    assert entry.pending is not None
    driver.fail_adopt = None
    await until(lambda: entry.state is S.WARM, "taken back, and restored")
