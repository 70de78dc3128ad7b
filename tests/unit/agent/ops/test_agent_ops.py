"""The agent's ops in one process: dedup, restore, activity, pins between two nodes, recovery."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from medes.rpc.gen import agent_pb2

from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.daemon import AgentDaemon
from medes.agent.ops.base_op import retire_unused
from medes.agent.ops.view import view_of
from medes.client import AsyncMedesClient
from medes.controller.process import Controller
from medes.errors import (
    AlreadyExistsError,
    BusyError,
    CancelledError,
    InvalidArgumentError,
    LimitExceededError,
    LostError,
    NotFoundError,
    StoreFullError,
    TracedError,
    UnsupportedError,
    WrongStateError,
)
from medes.policy.keep_alive import Action
from medes.types import Activity, DedupReport, LifecycleSettings, NoteCode
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.unit.agent.conftest import MakeAgent

MakeApp = Callable[..., App]


async def register(daemon: AgentDaemon, app: App, sandbox_id: str = "s1", **more: object) -> None:
    await handlers.register(
        daemon.agent, Registration(sandbox_id=sandbox_id, function="f", pids=(app.pid,), **more)
    )


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


# --- registering -------------------------------------------------------------------------------------------
async def test_register_refuses_what_is_no_sandbox(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, app = await make_agent(), make_app()
    agent = daemon.agent
    for registration, error in (
        (Registration(function="f", pids=(2**22 + 5,)), NotFoundError),
        (Registration(function="f", pids=(1,)), InvalidArgumentError),
        (Registration(function="f", pids=(app.pid, app.pid)), InvalidArgumentError),
        (Registration(function="f"), InvalidArgumentError),
        (Registration(function="f", pids=(app.pid,), cgroup="/x"), InvalidArgumentError),
        (Registration(function="../f", pids=(app.pid,)), InvalidArgumentError),
        (Registration(sandbox_id="a/b", function="f", pids=(app.pid,)), InvalidArgumentError),
        (Registration(function="f", pids=(app.pid,), driver="live"), UnsupportedError),
        (Registration(function="f", pids=(app.pid,), driver="vm"), UnsupportedError),
        (
            Registration(
                function="f", pids=(app.pid,), lifecycle=LifecycleSettings(keep_alive_period_ms=3600_000)
            ),
            InvalidArgumentError,  # the agent's idle period, an hour, is as long: it would never be dedup'd
        ),
    ):
        with pytest.raises(error):
            await handlers.register(agent, registration)
    assert handlers.list_sandboxes(agent) == []


async def test_too_many_pids_are_refused_on_the_wire(make_agent: MakeAgent) -> None:
    """As any client may send them: 100,000, and more than a request may hold."""
    daemon = await make_agent()
    async with AsyncMedesClient(daemon.settings.listen) as client:
        for pids in (100_000, 400_000):
            with pytest.raises(LimitExceededError):
                await client.stub.Register(agent_pb2.RegisterRequest(function="f", pids=range(2, pids)))
        assert await client.list() == []


async def test_registering_again_changes_settings_and_other_processes_are_refused(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, app, other = await make_agent(), make_app(), make_app()
    await register(daemon, app)
    await register(daemon, app, purge_kills=True)
    assert daemon.agent.entries["s1"].spec.purge_kills
    with pytest.raises(AlreadyExistsError):
        await register(daemon, other)
    with pytest.raises(AlreadyExistsError, match="belongs to sandbox s1"):
        await register(daemon, app, "s2")


async def test_a_dedup_that_waits_for_a_restore_does_not_hold_the_agents_end(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, app = await make_agent(), make_app()
    await register(daemon, app)
    entry = daemon.agent.entries["s1"]
    entry.completed.clear()  # as while its pages come in
    waits = asyncio.create_task(handlers.dedup(daemon.agent, "s1"))
    await until(lambda: daemon.agent.dedups_queued == 1, "the dedup waits")
    await daemon.stop()
    with pytest.raises(
        BusyError, match="the agent is stopping"
    ):  # and was not cut off by the end's own deadline
        await waits


# --- dedup and restore -------------------------------------------------------------------------------------
async def test_first_instance_becomes_a_base_and_the_second_is_patched_against_it(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    daemon = await make_agent(controller=controller.address)
    first, second = make_app(seed=1), make_app(seed=2)
    await register(daemon, first, "s1")
    await register(daemon, second, "s2")
    one = (await handlers.dedup(daemon.agent, "s1")).report
    assert one.base_bytes_added > 0
    assert one.warm_bytes == one.gross_saved_bytes + one.patch_bytes + one.table_bytes + one.resident_bytes
    two = (await handlers.dedup(daemon.agent, "s2")).report
    assert two.base_bytes_added == 0
    assert two.gross_saved_bytes > 0.6 * two.warm_bytes
    (base,) = handlers.node_status(daemon.agent).bases
    assert base.pins == 2
    restored = await handlers.restore(daemon.agent, "s2", eager=True)
    assert restored.report.was_dedup and restored.sandbox.state is S.WARM
    assert handlers.node_status(daemon.agent).bases[0].pins == 1
    assert not (await handlers.restore(daemon.agent, "s2")).report.was_dedup
    files = sorted(p.name.split("-")[0] for p in daemon.settings.shm_path.iterdir())
    assert files == ["base", "lock", "sandbox", "store.key"]


async def holder_and_user(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> tuple[AgentDaemon, AgentDaemon, App]:
    """Two nodes: the first holds the base that sandbox `a` became, the second has `b` (the App), still warm."""
    holder = await make_agent("n0", controller.address)
    user = await make_agent("n1", controller.address)
    app = make_app(seed=2)
    await register(holder, make_app(seed=1), "a")
    await register(user, app, "b")
    await handlers.dedup(holder.agent, "a")
    return holder, user, app


async def test_another_node_reads_the_base_over_tcp_and_pins_it(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    holder, user, _ = await holder_and_user(make_agent, make_app, controller)
    report = (await handlers.dedup(user.agent, "b")).report
    assert report.base_bytes_added == 0
    assert report.remote_pages_read > 0
    assert report.pages_by_transport == {"tcp+tls": report.remote_pages_read}
    (base,) = holder.agent.bases.bases.values()
    assert holder.agent.pins.count(base.base_id) == 2
    assert handlers.get(user.agent, "b").transport_by_peer == {"n0": "tcp+tls"}
    await handlers.restore(user.agent, "b", eager=True)
    await until(lambda: holder.agent.pins.count(base.base_id) == 1, "the pin is given back")


def _taken_over(report: DedupReport) -> int:
    return sum(int(n.text.split()[0]) for n in report.notes if n.code is NoteCode.TAKEN_OVER)


async def test_a_second_dedup_takes_over_what_did_not_change(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    """Also what lies against a base of another node; and not once memory was short."""
    _, user, app = await holder_and_user(make_agent, make_app, controller)
    first = (await handlers.dedup(user.agent, "b")).report
    assert _taken_over(first) == 0
    entry = user.agent.entries["b"]
    for _ in range(2):
        await handlers.restore(user.agent, "b", eager=True)
        assert entry.previous is not None
        assert user.agent.accounting.patch_store_bytes == entry.previous.file.file_bytes
        again = (await handlers.dedup(user.agent, "b")).report
        assert _taken_over(again) > sum(again.pages_by_kind) // 2
        assert again.patch_bytes < 1.1 * first.patch_bytes
        assert entry.previous is None
    await handlers.restore(user.agent, "b", eager=True)
    user.agent.drop_previous()
    assert _taken_over((await handlers.dedup(user.agent, "b")).report) == 0
    await handlers.restore(user.agent, "b", eager=True)
    app.ask()


async def test_a_second_dedup_whose_base_has_gone_encodes_everything(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    daemon = await make_agent(controller=controller.address)
    app = make_app()
    await register(daemon, app, "s1")
    await handlers.dedup(daemon.agent, "s1")
    await handlers.restore(daemon.agent, "s1", eager=True)
    assert len(await retire_unused(daemon.agent, set())) == 1
    report = (await handlers.dedup(daemon.agent, "s1")).report
    assert report.base_bytes_added > 0 or NoteCode.NOTHING_TAKEN_OVER in {n.code for n in report.notes}
    await handlers.restore(daemon.agent, "s1", eager=True)
    app.ask()


async def test_another_domain_never_sees_the_base(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    daemon = await make_agent(controller=controller.address)
    await register(daemon, make_app(seed=1), "s1", tenant="red")
    await register(daemon, make_app(seed=2), "s2", tenant="blue")
    await handlers.dedup(daemon.agent, "s1")
    assert (await handlers.dedup(daemon.agent, "s2")).report.base_bytes_added > 0


async def test_activity_cancels_a_dedup_op(make_agent: MakeAgent, make_app: MakeApp) -> None:

    daemon, app = await make_agent(), make_app()
    driver = daemon.driver  # type: ignore[attr-defined]
    driver.capture_gate = threading.Event()
    await register(daemon, app)
    op = asyncio.create_task(handlers.dedup(daemon.agent, "s1"))
    await until(driver.capturing.is_set, "the op captures")
    assert handlers.get(daemon.agent, "s1").state is S.DEDUPING
    begun = asyncio.create_task(handlers.notify_activity(daemon.agent, "s1", Activity.BEGUN))
    await asyncio.sleep(0.01)
    driver.capture_gate.set()
    with pytest.raises(CancelledError):
        await op
    assert (await begun).state is S.RUNNING
    assert driver.handles == []
    with pytest.raises(WrongStateError, match="running"):
        await handlers.dedup(daemon.agent, "s1")
    assert (await handlers.notify_activity(daemon.agent, "s1", Activity.ENDED)).state is S.WARM


async def test_activity_wakes_a_dedupd_sandbox_before_it_answers(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, app = await make_agent(), make_app()
    daemon.driver.hold_restores = True  # type: ignore[attr-defined]
    await register(daemon, app)
    await handlers.dedup(daemon.agent, "s1")
    assert (await handlers.notify_activity(daemon.agent, "s1", Activity.BEGUN)).state is S.RESTORING
    daemon.driver.handles[0].finish()  # type: ignore[attr-defined]
    await until(lambda: handlers.get(daemon.agent, "s1").state is S.RUNNING, "restored while running")
    assert len(daemon.agent.working_sets.get("default", "f")) == 2


@pytest.mark.parametrize(
    ("eager", "faulted"), [(True, b"\1" * 32), (False, b"")], ids=["eager", "no request"]
)
async def test_a_restore_that_nobody_waited_for_teaches_nothing(
    make_agent: MakeAgent, make_app: MakeApp, eager: bool, faulted: bytes
) -> None:
    """Else what it left out as a holdout would seem untouched, and leave the set."""
    daemon, app = await make_agent(), make_app()
    await register(daemon, app)
    await handlers.dedup(daemon.agent, "s1")
    daemon.driver.handles[0].faulted = faulted  # type: ignore[attr-defined]
    await handlers.restore(daemon.agent, "s1", eager=eager)
    await until(lambda: handlers.get(daemon.agent, "s1").state is S.WARM, "restored")
    await asyncio.sleep(0.1)
    assert daemon.agent.working_sets.get("default", "f").restores == 0


async def test_a_demand_wake_is_reported_and_slows_the_next_dedup(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, app = await make_agent(), make_app()
    await register(daemon, app)
    await handlers.dedup(daemon.agent, "s1")
    daemon.driver.handles[0].wake()  # type: ignore[attr-defined]
    await until(lambda: handlers.get(daemon.agent, "s1").state is S.WARM, "woken")
    sandbox = handlers.get(daemon.agent, "s1")
    assert sandbox.last_restore is not None and sandbox.last_restore.demand_woken
    assert daemon.agent.entries["s1"].idle_wakes == 1
    await handlers.notify_activity(daemon.agent, "s1", Activity.BEGUN)
    assert daemon.agent.entries["s1"].idle_wakes == 0


async def test_a_failed_eviction_leaves_the_sandbox_warm_and_nothing_behind(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, app = await make_agent(), make_app()
    daemon.driver.fail_evict = TracedError("strace holds it", object="pid 1")  # type: ignore[attr-defined]
    await register(daemon, app)
    with pytest.raises(TracedError):
        await handlers.dedup(daemon.agent, "s1")
    assert handlers.get(daemon.agent, "s1").state is S.WARM
    assert daemon.agent.entries["s1"].dedup_failures == 1
    (base,) = daemon.agent.bases.bases
    assert not daemon.agent.pins.is_pinned(base)
    assert [p.name for p in daemon.settings.shm_path.glob("sandbox-*")] == []
    app.ask()


async def test_a_lost_sandbox_stays_lost_until_it_is_purged(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, app = await make_agent(), make_app()
    daemon.driver.fail_restores = True  # type: ignore[attr-defined]
    await register(daemon, app, purge_kills=True)
    await handlers.dedup(daemon.agent, "s1")
    with pytest.raises(LostError, match="checksum"):
        await handlers.restore(daemon.agent, "s1", eager=True)
    assert "checksum" in handlers.get(daemon.agent, "s1").lost_reason
    with pytest.raises(LostError):
        await handlers.notify_activity(daemon.agent, "s1", Activity.BEGUN)
    await handlers.purge(daemon.agent, "s1")
    await until(lambda: not app.alive(), "killed")
    with pytest.raises(NotFoundError):
        handlers.get(daemon.agent, "s1")


@pytest.mark.parametrize("limit", ["base_store_limit_bytes", "patch_store_limit_bytes"])
async def test_a_full_store_leaves_the_sandbox_warm(
    make_agent: MakeAgent, make_app: MakeApp, limit: str
) -> None:
    daemon, app = await make_agent(**{limit: 4096}), make_app()
    await register(daemon, app)
    with pytest.raises(StoreFullError, match=r"do(es)? not fit"):
        await handlers.dedup(daemon.agent, "s1")
    assert handlers.get(daemon.agent, "s1").state is S.WARM
    app.ask()


async def test_a_process_that_exits_is_forgotten(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, app = await make_agent(), make_app()
    await register(daemon, app)
    app.close()
    await until(lambda: "s1" not in daemon.agent.entries, "noticed by the timers")
    assert daemon.agent.journal.state.sandboxes == {}


async def test_purge_without_kill_gives_the_pages_back_first(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon, app = await make_agent(), make_app()
    await register(daemon, app)
    await handlers.dedup(daemon.agent, "s1")
    await handlers.purge(daemon.agent, "s1")
    assert daemon.driver.handles[0].state == "complete"  # type: ignore[attr-defined]
    assert app.alive()
    assert [p.name for p in daemon.settings.shm_path.glob("sandbox-*")] == []


async def test_timers_dedup_and_purge_on_their_own(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await make_agent(idle_period_s=0.2, keep_dedup_period_s=0.5)
    app = make_app()
    await register(daemon, app, purge_kills=True)
    await until(lambda: daemon.agent.entries["s1"].state is S.DEDUP, "dedup'd")
    await until(lambda: "s1" not in daemon.agent.entries, "purged")
    await until(lambda: not app.alive(), "killed")


async def test_no_timer_forgets_a_sandbox_whose_processes_it_may_not_end(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent(idle_period_s=0.1, keep_alive_period_s=0.2, keep_dedup_period_s=0.2)
    await register(daemon, make_app())
    entry = daemon.agent.entries["s1"]
    await until(lambda: entry.state is S.DEDUP, "dedup'd")
    entry.since_s -= 1e6
    assert daemon.agent.policy.outlook(view_of(daemon.agent, entry)).action is Action.NONE
    entry.spec = replace(entry.spec, purge_kills=True)
    assert daemon.agent.policy.outlook(view_of(daemon.agent, entry)).action is Action.PURGE


async def test_a_runtime_that_died_between_begin_and_end_leaves_nothing_running(
    make_agent: MakeAgent, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = await make_agent(idle_period_s=0.1, activity_lease_s=1.0)
    await register(daemon, make_app())
    await register(daemon, make_app(), "s2", lifecycle=LifecycleSettings(activity_lease_ms=3600_000))
    entry, other = daemon.agent.entries["s1"], daemon.agent.entries["s2"]
    for sandbox_id in ("s1", "s1", "s2"):
        await handlers.notify_activity(daemon.agent, sandbox_id, Activity.BEGUN)
    await until(lambda: entry.state is S.DEDUP, "idle, and then dedup'd")
    assert (entry.requests, other.requests, other.state) == (0, 1, S.RUNNING)
    assert "s1: no request began or ended" in caplog.text
    assert daemon.registry.get_sample_value("medes_agent_activity_leases_expired_total") == 1
    # An end that comes late after all changes nothing, and requests work as ever.
    await handlers.notify_activity(daemon.agent, "s1", Activity.ENDED)
    assert (await handlers.notify_activity(daemon.agent, "s1", Activity.BEGUN)).state in (
        S.RESTORING,
        S.RUNNING,
    )


# --- cluster -----------------------------------------------------------------------------------------------
async def test_without_a_controller_the_node_works_on_with_its_own_bases(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    daemon = await make_agent(controller=controller.address)
    await register(daemon, make_app(seed=1), "s1")
    await handlers.dedup(daemon.agent, "s1")
    await controller.stop()
    await until(lambda: not daemon.agent.controller.connected, "noticed")
    await register(daemon, make_app(seed=2), "s2")
    report = (await handlers.dedup(daemon.agent, "s2")).report
    assert report.base_bytes_added == 0
    assert report.gross_saved_bytes > 0.6 * report.warm_bytes


async def test_a_holder_that_is_away_is_left_out_with_a_note(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    holder = await make_agent("n0", controller.address)
    user = await make_agent("n1", controller.address)
    await register(holder, make_app(seed=1), "a")
    await handlers.dedup(holder.agent, "a")
    await holder._peer.stop(0.0)
    await register(user, make_app(seed=2), "b")
    result = await handlers.dedup(user.agent, "b")
    assert result.sandbox.state is S.DEDUP
    assert result.report.remote_pages_read == 0
    assert any("remote bases not used" in note.text for note in result.report.notes)
