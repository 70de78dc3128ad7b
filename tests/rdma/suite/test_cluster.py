"""A controller and two agents as processes: dedup and restore in which RDMA carries every remote base page."""

from __future__ import annotations

import dataclasses
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from medes.client import MedesClient
from medes.demo.cluster import local_cluster
from medes.demo.driver import Demo
from medes.runtimes import manifest
from medes.types import LifecycleSettings
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App
from tests.support.ports import free_port

pytestmark = [pytest.mark.rdma, pytest.mark.live, pytest.mark.timeout(900)]

# Emulation is some twenty times slower: nothing may be taken for dead because it is late.
SLOW = ("--heartbeat-interval-ms", "1000", "--lease-ms", "60000")
LASTING_S = 86400  # of queue pairs: while one is made anew, reads that cannot wait go over TCP
HELD = LifecycleSettings(disabled=True)
MakeApp = Callable[..., App]


def metric(agent: AgentProcess, address: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
    raise AssertionError(f"{agent.node_id} has no metric {name}")


def restore_and_check(client: MedesClient, sandbox_id: str, app: App) -> None:
    client.restore(sandbox_id, eager=True)
    app.ask()
    wait_until(lambda: client.get(sandbox_id).state is S.WARM, f"{sandbox_id} complete", 300)
    app.ask()


def test_dedup_and_restore_over_rdma_alone(tmp_path: Path, make_app: MakeApp) -> None:
    cluster = Cluster(tmp_path, nodes=2, controller_flags=SLOW, transport="rdma", page_token_s=LASTING_S)
    addresses = [f"127.0.0.1:{free_port()}" for _ in cluster.agents]
    for agent, address in zip(cluster.agents, addresses, strict=True):
        agent.set(metrics_address=address)
    with cluster:
        dedup_and_restore(cluster, addresses, make_app)


def dedup_and_restore(cluster: Cluster, addresses: list[str], make_app: MakeApp) -> None:
    apps = [make_app(megabytes=2, seed=n) for n in range(2)]
    with cluster.agents[0].client() as one, cluster.agents[1].client() as two:
        one.register("counter", pids=[apps[0].pid], sandbox_id="base", lifecycle=HELD)
        two.register("counter", pids=[apps[1].pid], sandbox_id="reader", lifecycle=HELD)
        assert one.dedup("base").report.base_bytes_added > 0
        report = two.dedup("reader").report
        assert report.remote_pages_read > 0
        assert report.pages_by_transport == {"rdma": report.remote_pages_read}
        assert two.get("reader").transport_by_peer == {"n0": "rdma"}
        restore_and_check(two, "reader", apps[1])
        restore_and_check(one, "base", apps[0])
    assert metric(cluster.agents[0], addresses[0], "medes_agent_page_server_bytes") == 0
    assert metric(cluster.agents[0], addresses[0], 'medes_agent_rdma_connections{side="server"}') == 1
    assert metric(cluster.agents[1], addresses[1], 'medes_agent_rdma_connections{side="client"}') == 1
    assert metric(cluster.agents[1], addresses[1], "medes_agent_fallback_reads") == 0


def test_restore_after_the_holder_was_killed_and_came_back(
    make_cluster: Callable[..., Cluster], make_app: MakeApp
) -> None:
    cluster = make_cluster(
        nodes=2, controller=True, controller_flags=SLOW, transport="auto", rdma_devices="rxe0"
    )
    apps = [make_app(megabytes=2, seed=n) for n in range(2)]
    with cluster.agents[0].client() as one, cluster.agents[1].client() as two:
        one.register("counter", pids=[apps[0].pid], sandbox_id="base", lifecycle=HELD)
        two.register("counter", pids=[apps[1].pid], sandbox_id="reader", lifecycle=HELD)
        one.dedup("base")
        assert two.dedup("reader").report.remote_pages_read > 0
        assert two.get("reader").transport_by_peer == {"n0": "rdma"}
        cluster.agents[0].kill()
        cluster.agents[0].start()
        restore_and_check(two, "reader", apps[1])


def test_connections_of_a_killed_agent_are_reaped(tmp_path: Path, make_app: MakeApp) -> None:
    cluster = Cluster(tmp_path, nodes=2, controller_flags=SLOW, transport="rdma", page_token_s=LASTING_S)
    address = f"127.0.0.1:{free_port()}"
    cluster.agents[0].set(metrics_address=address, page_lease_s=40.0)
    cluster.agents[1].set(page_lease_s=40.0)
    connections = 'medes_agent_rdma_connections{side="server"}'
    with cluster:
        apps = [make_app(megabytes=1, seed=n) for n in range(2)]
        with cluster.agents[0].client() as one, cluster.agents[1].client() as two:
            one.register("counter", pids=[apps[0].pid], sandbox_id="base", lifecycle=HELD)
            two.register("counter", pids=[apps[1].pid], sandbox_id="reader", lifecycle=HELD)
            one.dedup("base")
            assert two.dedup("reader").report.remote_pages_read > 0
        time.sleep(60)
        assert metric(cluster.agents[0], address, connections) == 1, "kept by a living reader"
        cluster.agents[1].kill()
        wait_until(lambda: metric(cluster.agents[0], address, connections) == 0, "connection reaped", 600)
        cluster.agents[1].start()
        with cluster.agents[1].client() as two:
            restore_and_check(two, "reader", apps[1])
        assert metric(cluster.agents[0], address, connections) == 1
        assert metric(cluster.agents[0], address, "medes_agent_page_server_bytes") == 0


def test_queue_pairs_end_with_their_token_and_are_made_anew(tmp_path: Path, make_app: MakeApp) -> None:
    cluster = Cluster(tmp_path, nodes=2, controller_flags=SLOW, transport="rdma", page_token_s=20)
    with cluster:
        apps = [make_app(megabytes=1, seed=n) for n in range(2)]
        with cluster.agents[0].client() as one, cluster.agents[1].client() as two:
            one.register("counter", pids=[apps[0].pid], sandbox_id="base", lifecycle=HELD)
            two.register("counter", pids=[apps[1].pid], sandbox_id="reader", lifecycle=HELD)
            one.dedup("base")
            for times in (1, 2):
                assert two.dedup("reader").report.base_bytes_added == 0
                wait_until(
                    lambda n=times: cluster.agents[1].log.read_text().count("(default) is back") >= n,
                    f"made anew {times} times",
                    300,
                )
                restore_and_check(two, "reader", apps[1])


async def test_demo_reads_every_remote_page_by_rdma(monkeypatch: pytest.MonkeyPatch) -> None:
    """`medes demo --transport rdma` with two of the ten functions, step by step, to see its agents' counters."""
    monkeypatch.setattr("medes.demo.cluster.START_TIMEOUT_S", 900.0)
    monkeypatch.setattr("medes.demo.driver.COMPLETE_TIMEOUT_S", 600.0)
    monkeypatch.setattr("medes.runtimes.host.hosted_instance.LOAD_TIMEOUT_S", 600.0)
    monkeypatch.setenv("MEDES_CONTROLLER_LEASE_MS", "300000")
    monkeypatch.setenv("MEDES_AGENT_PAGE_TOKEN_S", str(LASTING_S))
    names = {"vanilla", "html"}
    bundled = manifest.load_all(manifest.bundled_directory())
    specs = [dataclasses.replace(spec, timeout_s=600.0) for spec in bundled if spec.name in names]
    assert len(specs) == len(names)
    async with local_cluster(2, "rdma") as cluster:
        demo = Demo(cluster, specs, 2)
        for step in (demo.deploy, demo.record, demo.warm, demo.dedup, demo.restore):
            await step(lambda: None)
        statuses = [await node.status() for node in demo.host.nodes.values()]
        report = demo.report("rdma")
    assert demo.succeeded(), demo.failures
    assert report["transport"] == "rdma"
    assert report["cluster"]["base_pages_read_remote"] > 0
    assert {name for status in statuses for name in status.pages_read_by_transport} == {"rdma"}
    assert [status.page_server_bytes for status in statuses] == [0, 0]
