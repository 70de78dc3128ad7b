"""Saved is what the node has more than without us: shares of base pages add up, on one node and on two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from medes.agent.api import handlers
from medes.agent.api.registration import Registration
from medes.agent.daemon import AgentDaemon
from medes.agent.sandboxes.sandbox import SandboxEntry
from medes.controller.process import Controller
from medes.limits import FUNCTION_ROWS_MAX
from medes.types import SandboxState as S
from tests.support.counter_app import App
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
