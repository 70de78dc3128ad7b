"""Agents that end and come back, bases that go, storms of restores and purges: what is left over, which is nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from medes.agent.api import handlers
from medes.agent.ops.base_op import retire_unused
from medes.controller.process import Controller
from medes.errors import (
    CancelledError,
    MedesError,
    NotFoundError,
    WrongStateError,
)
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import holder_and_user, register, until

MakeApp = Callable[..., App]


async def test_a_restarted_agent_knows_its_bases_pins_and_sandboxes(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller, tmp_path: Path
) -> None:
    holder, user, _ = await holder_and_user(make_agent, make_app, controller)
    await handlers.dedup(user.agent, "b")
    (base,) = holder.agent.bases.bases
    await holder.stop()
    again = await make_agent("n0", controller.address)
    assert again.recovered.bases == 1
    # The stand-in evicts nothing, so the file says: no page has gone, nothing to take back.
    assert again.recovered.rolled_back == 1
    assert again.agent.pins.count(base) == 1, "the peer's pin survived, the rolled-back op's went"
    assert handlers.get(again.agent, "a").state is S.WARM
    await register(again, make_app(seed=3), "c")
    assert (await handlers.dedup(again.agent, "c")).report.base_bytes_added == 0


async def test_files_that_say_nothing_of_their_use_are_left_alone_and_removed_by_command(
    make_agent: MakeAgent,
) -> None:
    daemon = await make_agent()
    orphan = daemon.settings.shm_path / "base-0123456789abcdef.slab"
    stranger = daemon.settings.shm_path / "somebody-elses"
    orphan.write_bytes(b"x")
    stranger.write_bytes(b"x")
    await daemon.stop()
    again = await make_agent()
    assert again.recovered.orphans == 1
    assert (orphan.exists(), stranger.exists()) == (True, True)
    (listed,) = await handlers.list_orphans(again.agent)
    assert (listed.name, listed.code) == (orphan.name, "corrupt")
    with pytest.raises(NotFoundError):
        await handlers.remove_orphan(again.agent, stranger.name)
    await handlers.remove_orphan(again.agent, orphan.name)
    assert (orphan.exists(), stranger.exists()) == (False, True)
    assert await handlers.list_orphans(again.agent) == []


async def test_a_lost_journal_is_made_up_for_by_the_sandbox_files(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, app = await make_agent(), make_app()
    await register(daemon, app)
    await handlers.dedup(daemon.agent, "s1")
    await daemon.stop()
    (Path(daemon.settings.state_dir) / "journal").write_bytes(b"not a journal\n")
    again = await make_agent()
    assert handlers.get(again.agent, "s1").state is S.WARM
    assert again.agent.journal.damaged == 1
    app.ask()


async def test_an_unused_base_is_retired_and_freed(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    daemon = await make_agent(controller=controller.address)
    await register(daemon, make_app(), "s1")
    await handlers.dedup(daemon.agent, "s1")
    (base,) = daemon.agent.bases.bases
    assert await retire_unused(daemon.agent, set()) == [], "pinned by the dedup'd sandbox"
    await handlers.restore(daemon.agent, "s1", eager=True)
    assert await retire_unused(daemon.agent, {("default", "f")}) == [], "its function still has a sandbox"
    assert await retire_unused(daemon.agent, set()) == [base]
    assert sorted(p.name for p in daemon.settings.shm_path.iterdir()) == ["lock", "store.key"]
    assert controller.store.stats().bases == 0
    assert daemon.agent.journal.state.bases == {}


async def test_a_base_advice_that_came_to_nothing_is_taken_over(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    daemon = await make_agent(controller=controller.address)
    await register(daemon, make_app(seed=1), "s1")
    await register(daemon, make_app(seed=2), "s2")
    assert (await daemon.agent.controller.advise("f", "default", "s1"))[0]
    daemon.agent.base_advised[("default", "f")] = "s1"
    assert (await handlers.dedup(daemon.agent, "s2")).report.base_bytes_added > 0


async def test_a_storm_of_restores_is_bounded_and_all_are_served(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent(restores_concurrent_max=2)
    driver = daemon.driver  # type: ignore[attr-defined]
    apps = [make_app(megabytes=1, seed=n) for n in range(6)]
    for n, app in enumerate(apps):
        await register(daemon, app, f"s{n}")
        await handlers.dedup(daemon.agent, f"s{n}")
    driver.hold_restores = True
    storm = [asyncio.create_task(handlers.restore(daemon.agent, f"s{n}")) for n in range(6)]
    await until(lambda: daemon.agent.admission.queued == 4, "four wait for their turn")
    assert sum(h.state == "restoring" for h in driver.handles) == 2
    driver.hold_restores = False
    for handle in driver.handles:
        if handle.state == "restoring":
            handle.finish()
    results = await asyncio.gather(*storm)
    assert all(r.report.was_dedup for r in results)
    await until(lambda: all(s.state is S.WARM for s in handlers.list_sandboxes(daemon.agent)), "all warm")
    assert (daemon.agent.admission.running, daemon.agent.admission.queued) == (0, 0)


async def test_no_dedup_op_comes_between_a_purge_and_its_end(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    """It would take the pages of a sandbox that is then forgotten."""
    daemon = await make_agent()
    app = make_app()
    await register(daemon, app, "s1")
    driver = daemon.driver  # type: ignore[attr-defined]
    driver.capture_gate = threading.Event()
    first = asyncio.create_task(handlers.dedup(daemon.agent, "s1"))
    await until(driver.capturing.is_set, "the op is under way")
    second = asyncio.create_task(handlers.dedup(daemon.agent, "s1"))
    purge = asyncio.create_task(handlers.purge(daemon.agent, "s1"))
    await asyncio.sleep(0)
    driver.capture_gate.set()
    with pytest.raises(CancelledError):
        await first
    with pytest.raises(WrongStateError):
        await second
    await purge
    assert handlers.list_sandboxes(daemon.agent) == [] and app.alive()


@pytest.mark.parametrize("kills", [True, False])
async def test_a_purge_in_every_state_gives_everything_back(
    make_agent: MakeAgent, make_app: MakeApp, kills: bool
) -> None:
    daemon = await make_agent(restores_concurrent_max=2)
    agent, driver = daemon.agent, daemon.driver  # type: ignore[attr-defined]
    for n in range(6):  # more than there are slots
        await register(daemon, make_app(seed=n), f"s{n}", purge_kills=kills)
        await handlers.dedup(agent, f"s{n}")
        driver.hold_restores = n % 2 == 1
        waking = asyncio.create_task(handlers.restore(agent, f"s{n}", eager=n % 2 == 1))
        await until(lambda i=f"s{n}": handlers.get(agent, i).state is not S.DEDUP, "it restores")
        purge = asyncio.create_task(handlers.purge(agent, f"s{n}"))
        if not kills:  # nobody else gives it its pages
            driver.handles[-1].finish()
        await purge
        with contextlib.suppress(MedesError):
            await waking
    assert handlers.list_sandboxes(agent) == []
    await until(lambda: agent.admission.running == 0, "every slot is back")
    assert agent.pins.peer_domains("") == set()
    assert [p.name for p in daemon.settings.shm_path.glob("sandbox-*")] == []
