"""Real agents and a controller: once a node has learnt a base of another node, dedup ops find it without the controller."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable

import pytest

from medes.client import MedesClient
from medes.types import DedupReport
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App
from tests.support.ports import free_port

pytestmark = pytest.mark.live

MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]
# Instances differ in up to 1800 pages whatever their size: that must be well below a tenth, or the controller is asked.
MEGABYTES = 96


def metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def restart(agent: AgentProcess, **flags: object) -> None:
    agent.end()
    agent.set(**flags)
    agent.start()


def lookups(cluster: Cluster) -> int:
    with cluster.controller_client() as controller:
        return controller.statistics().lookups


def dedup(client: MedesClient, app: App, sandbox_id: str) -> DedupReport:
    client.register("counter", pids=[app.pid], sandbox_id=sandbox_id)
    return client.dedup(sandbox_id).report


def restore(client: MedesClient, app: App, sandbox_id: str) -> None:
    """With its last page in, and every byte what it was."""
    assert client.restore(sandbox_id, eager=True).report.was_dedup
    wait_until(lambda: client.get(sandbox_id).state is S.WARM, "complete")
    app.ask()


def test_a_learnt_base_is_used_without_the_controller_until_it_is_retired(
    make_cluster: MakeCluster, make_app: MakeApp
) -> None:
    cluster = make_cluster(nodes=2)
    holder, user = cluster.agents
    metrics = f"127.0.0.1:{free_port()}"
    restart(user, metrics_address=metrics)
    cluster.wait_joined()
    apps = [make_app(MEGABYTES, seed) for seed in range(4)]
    with holder.client() as one, user.client() as two:
        assert dedup(one, apps[0], "a").base_bytes_added > 0
        before = lookups(cluster)
        first = dedup(two, apps[1], "b")
        assert lookups(cluster) == before + 1, "nothing is known of the base yet"
        wait_until(lambda: metric(metrics, "medes_agent_remote_index_bases") == 1, "learnt")

        second = dedup(two, apps[2], "c")
        assert lookups(cluster) == before + 1
        assert metric(metrics, 'medes_agent_lookups_total{by="remote"}') == 1
        assert (second.base_bytes_added, second.remote_pages_read > 0) == (0, True)
        assert second.gross_saved_bytes > 0.9 * first.gross_saved_bytes
        restore(two, apps[2], "c")
        again = two.dedup("c").report
        assert lookups(cluster) == before + 1
        assert again.gross_saved_bytes > 0.9 * first.gross_saved_bytes
        restore(two, apps[2], "c")

        # Nobody needs the base any more and its node is short of memory: it goes.
        restore(two, apps[1], "b")
        restore(one, apps[0], "a")
        one.purge("a")
        wait_until(lambda: sum(b.pins for b in one.node().bases) == 0, "unpinned")
    restart(holder, memory_limit_bytes=1)
    with holder.client() as one, user.client() as two:
        wait_until(lambda: one.node().bases == (), "retired and freed")
        cluster.wait_joined()
        third = dedup(two, apps[3], "d")
        assert third.base_bytes_added > 0.5 * third.warm_bytes
        assert third.remote_pages_read == 0
        assert third.gross_saved_bytes > 0.6 * third.warm_bytes
        assert metric(metrics, "medes_agent_remote_index_bases") == 0
        restore(two, apps[3], "d")
