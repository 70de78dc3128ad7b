"""Saved is what the node has more than without us: shares of base pages add up, on one node and on two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from medes import native
from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.daemon import AgentDaemon
from medes.agent.lifecycle import weighing
from medes.agent.node.time_mean import TimeMean
from medes.agent.sandboxes.sandbox import SAVED_WINDOW_S, SandboxEntry
from medes.controller.process import Controller
from medes.limits import FUNCTION_ROWS_MAX
from medes.types import SandboxState as S
from tests.support.counter_app import App
from tests.support.manual_clock import ManualClock
from tests.unit.agent.conftest import MakeAgent
from tests.unit.agent.ops.test_agent_ops import until

MakeApp = Callable[..., App]


async def register(daemon: AgentDaemon, app: App, sandbox_id: str, **more: object) -> None:
    values: dict[str, object] = {"function": "f", **more}
    await handlers.register(
        daemon.agent,
        Registration(sandbox_id=sandbox_id, pids=(app.pid,), **values),  # type: ignore[arg-type]
    )


def gauge(daemon: AgentDaemon, name: str, **labels: str) -> float:
    value = daemon.registry.get_sample_value(f"medes_agent_{name}", labels)
    assert value is not None, name
    return value


def check_sums(daemon: AgentDaemon) -> None:
    """What each function saves, with what the node holds for others and for nobody, is what the node saves."""
    agent = daemon.agent
    usage = agent.usage()
    owners = agent.accounting.shares_by_owner()
    assert sum(owners.values()) == agent.bases.used_bytes
    entries = list(agent.entries.values())
    elsewhere = sum(
        s.share_bytes for e in entries for s in agent.accounting.base_shares(e) if s.node_id != agent.node_id
    )
    told = sum(row.saved_bytes for row in agent.accounting.function_usage())
    assert (
        usage.saved_bytes
        == told + elsewhere - owners["peers"] - owners["nobody"] - agent.accounting.index_bytes
    )
    assert gauge(daemon, "node_saved_bytes") == usage.saved_bytes
    assert gauge(daemon, "node_gross_saved_bytes") == usage.gross_saved_bytes
    for row in agent.accounting.function_usage():
        labels = {"function": row.function, "tenant": row.tenant}
        assert gauge(daemon, "saved_bytes", **labels) == row.saved_bytes
        assert gauge(daemon, "base_share_bytes", **labels) == row.base_share_bytes


async def test_one_sandbox_alone_saves_nothing_and_each_further_one_more(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent()
    apps = [make_app(seed=n) for n in range(3)]
    for n, app in enumerate(apps):
        await register(daemon, app, f"s{n}", tenant=f"t{n % 2}", domain="shared")
    assert gauge(daemon, "node_saved_bytes") == 0
    alone = (await handlers.dedup(daemon.agent, "s0")).report
    assert alone.gross_saved_bytes > 0.6 * alone.warm_bytes
    # Its base takes as much as it freed.
    assert alone.base_share_bytes == daemon.agent.bases.used_bytes
    assert alone.saved_bytes == alone.gross_saved_bytes - alone.base_share_bytes < 0.05 * alone.warm_bytes
    assert handlers.get(daemon.agent, "s0").saved_bytes == alone.saved_bytes
    assert gauge(daemon, "node_saved_bytes") < 0.05 * alone.warm_bytes
    check_sums(daemon)
    for n in (1, 2):
        await handlers.dedup(daemon.agent, f"s{n}")
        check_sums(daemon)
    shares = [s.base_share_bytes for s in handlers.list_sandboxes(daemon.agent)]
    assert shares == [daemon.agent.bases.used_bytes // 3] * 3
    assert gauge(daemon, "node_saved_bytes") > alone.warm_bytes
    assert {(r.function, r.tenant, r.sandboxes) for r in daemon.agent.accounting.function_usage()} == {
        ("f", "t0", 2),
        ("f", "t1", 1),
    }
    # All awake again: the base is the maker's alone, and what is kept for the next ops counts too.
    for n in range(3):
        await handlers.restore(daemon.agent, f"s{n}", eager=True)
    views = {s.sandbox_id: s for s in handlers.list_sandboxes(daemon.agent)}
    assert views["s0"].state is S.WARM and views["s0"].saved_bytes < -daemon.agent.bases.used_bytes
    assert views["s1"].base_share_bytes == 0 > views["s1"].saved_bytes
    check_sums(daemon)
    await handlers.purge(daemon.agent, "s0")
    assert gauge(daemon, "base_owner_bytes", owner="nobody") == daemon.agent.bases.used_bytes > 0
    check_sums(daemon)


async def test_a_base_of_another_node_is_shared_with_that_nodes_sandboxes(
    make_agent: MakeAgent, make_app: MakeApp, controller: Controller
) -> None:
    holder = await make_agent("n0", controller.address)
    reader = await make_agent("n1", controller.address)
    for n, daemon in enumerate((holder, reader, reader)):
        await register(daemon, make_app(seed=n), f"s{n}")
    await handlers.dedup(holder.agent, "s0")
    for n in (1, 2):
        report = (await handlers.dedup(reader.agent, f"s{n}")).report
        assert report.base_bytes_added == 0 and report.remote_pages_read > 0
        assert report.base_share_bytes == holder.agent.bases.used_bytes // (n + 1)
    await reader.agent.peers.keep_pages()
    third = holder.agent.bases.used_bytes // 3
    for daemon in (holder, reader):
        check_sums(daemon)
        assert {s.base_share_bytes for s in handlers.list_sandboxes(daemon.agent)} == {third}
    assert gauge(holder, "base_owner_bytes", owner="peers") >= 2 * third
    # The controller hears of both, and sums what nodes save with all their base pages in it.
    expected = {
        (n, r.saved_bytes)
        for n, d in enumerate((holder, reader))
        for r in d.agent.accounting.function_usage()
    }

    def told() -> set[tuple[int, int]]:
        records = controller.state.membership.records(0.0)
        return {(n, f.saved_bytes) for n, record in enumerate(records) for f in record.functions}

    await until(lambda: told() == expected, "told")
    saved = sum(d.agent.usage().saved_bytes for d in (holder, reader))
    await until(lambda: controller.state.cluster_bytes(0.0)["saved"] == saved, "heartbeats")
    # The node that holds the pages pays for them; that which reads them does not.
    assert gauge(reader, "node_saved_bytes") > gauge(reader, "saved_bytes", function="f", tenant="default")


async def test_functions_beyond_the_bound_are_one_row(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon, app = await make_agent(), make_app()
    await register(daemon, app, "s0")
    entry = daemon.agent.entries["s0"]
    for n in range(FUNCTION_ROWS_MAX + 5):
        spec = replace(entry.spec, sandbox_id=f"x{n}", function=f"f{n}")
        daemon.agent.entries[f"x{n}"] = SandboxEntry(
            spec, entry.subject, "n0", S.WARM, daemon.agent.clock.now_s()
        )
    rows = daemon.agent.accounting.function_usage()
    for n in range(FUNCTION_ROWS_MAX + 5):
        del daemon.agent.entries[f"x{n}"]
    assert len(rows) == FUNCTION_ROWS_MAX
    assert (rows[-1].function, rows[-1].tenant, rows[-1].sandboxes) == ("(others)", "(others)", 7)


async def test_savings_are_averaged_over_time(
    make_agent: MakeAgent, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sandbox, its function and the node, each as if told at every instant: states change between two looks."""
    daemon = await make_agent()
    agent = daemon.agent
    clock = ManualClock(agent.clock.now_s())
    await register(daemon, make_app(), "s0")
    monkeypatch.setattr(agent, "clock", clock)
    monkeypatch.setattr(agent.accounting, "_clock", clock)
    entry = agent.entries["s0"]
    agent.accounting._saved = TimeMean(clock.now_s(), SAVED_WINDOW_S)
    entry.saved = TimeMean(clock.now_s(), SAVED_WINDOW_S)
    await clock.advance(100.0)
    assert handlers.get(agent, "s0").mean_saved_bytes == 0
    await handlers.dedup(agent, "s0")
    agent.accounting.look()
    asleep = handlers.get(agent, "s0").saved_bytes
    node = agent.usage().saved_bytes
    assert asleep is not None and asleep != 0
    await clock.advance(300.0)
    view = handlers.get(agent, "s0")
    assert view.mean_saved_bytes == round(asleep * 300 / 400)
    weight = math.exp(-300 / SAVED_WINDOW_S)
    all_of_it = 1 - math.exp(-400 / SAVED_WINDOW_S)
    assert view.recent_saved_bytes == pytest.approx(asleep * (1 - weight) / all_of_it, abs=1)
    (row,) = agent.accounting.function_usage()
    assert (row.mean_saved_bytes, row.recent_saved_bytes) == (view.mean_saved_bytes, view.recent_saved_bytes)
    assert agent.usage().mean_saved_bytes == round(node * 300 / 400)
    labels = {"function": row.function, "tenant": row.tenant}
    assert gauge(daemon, "mean_saved_bytes", over="ever", **labels) == view.mean_saved_bytes
    assert gauge(daemon, "mean_saved_bytes", over="10m", **labels) == view.recent_saved_bytes
    assert gauge(daemon, "node_mean_saved_bytes", over="ever") == agent.usage().mean_saved_bytes
    # Awake again: what is kept for its next op, and its base, are from then on what it costs.
    await handlers.restore(agent, "s0", eager=True)
    await until(lambda: entry.state is S.WARM, "restored")
    agent.accounting.look_at(entry)  # memory pressure may have dropped what was kept for its next op
    awake = handlers.get(agent, "s0").saved_bytes
    assert awake is not None and awake < 0
    await clock.advance(400.0)
    assert handlers.get(agent, "s0").mean_saved_bytes == pytest.approx(
        (asleep * 300 + awake * 400) / 800, abs=2
    )


async def test_what_is_present_is_what_is_kept_without_the_file(
    make_agent: MakeAgent, make_app: MakeApp
) -> None:
    daemon = await make_agent()
    await register(daemon, make_app(), "s0")
    agent, entry = daemon.agent, daemon.agent.entries["s0"]
    warm = handlers.get(agent, "s0")
    assert (warm.present_bytes, warm.tick_bytes) == (warm.warm_bytes, 0)
    daemon.driver.tick_pages = 1  # type: ignore[attr-defined]
    report = (await handlers.dedup(agent, "s0")).report
    asleep = handlers.get(agent, "s0")
    assert (asleep.present_bytes, asleep.tick_bytes) == (report.resident_bytes, native.PAGE_BYTES)
    daemon.driver.handles[0].placed_pages = 5  # type: ignore[attr-defined]
    touched = handlers.get(agent, "s0")
    assert touched.present_bytes == report.resident_bytes + 5 * native.PAGE_BYTES
    assert (touched.touched_bytes, touched.tick_bytes) == (5 * native.PAGE_BYTES, native.PAGE_BYTES)
    usage, (row,) = agent.usage(), agent.accounting.function_usage()
    for told in (usage, row):
        assert (told.present_bytes, told.tick_bytes, told.touched_bytes) == (
            touched.present_bytes,
            touched.tick_bytes,
            touched.touched_bytes,
        )
    for kind in ("present", "tick", "touched"):
        assert gauge(daemon, "memory_bytes", kind=kind) == getattr(touched, f"{kind}_bytes")
    await handlers.restore(agent, "s0", eager=True)
    await until(lambda: entry.state is S.WARM, "restored")
    again = handlers.get(agent, "s0")
    assert (again.present_bytes, again.tick_bytes, again.touched_bytes) == (again.warm_bytes, 0, 0)


async def test_a_sandbox_is_weighed_when_it_has_been_used(make_agent: MakeAgent, make_app: MakeApp) -> None:
    daemon = await make_agent()
    await register(daemon, make_app(), "s0")
    agent, entry = daemon.agent, daemon.agent.entries["s0"]
    told_s = entry.weighed_s
    await weighing.look(agent)
    assert entry.weighed_s == told_s  # at its registration
    entry.warm_bytes, entry.weighed_s, entry.since_s = 1, told_s - weighing.WEIGH_S, told_s
    await weighing.look(agent)
    assert entry.weighed_s >= told_s
    assert entry.warm_bytes > native.PAGE_BYTES
