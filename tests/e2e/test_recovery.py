"""`kill -9` of the agent at each step of both ops: the sandbox is intact and can be restored by the next agent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from medes.agent.node.fault_points import DEDUP_POINTS, RESTORE_POINTS
from medes.client import MedesClient
from medes.errors import MedesError
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App

pytestmark = [pytest.mark.live, pytest.mark.slow]

MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]

# Steps inside the native core: see docs/live-driver.md.
NATIVE_DEDUP_POINTS = (
    "evict.begin",
    "evict.stopped",
    "evict.marked",
    "evict.registered",
    "evict.before_release",
    "evict.released",
    "evict.uffd",
    "evict.discarded_one",
    "evict.discarded",
    "evict.evicted",
)
NATIVE_RESTORE_POINTS = (
    "restore.rebuilt",
    "restore.place",
    "restore.prefetched",
    "restore.unregister",
)


def settled(client: MedesClient, sandbox_id: str = "a") -> bool:
    return client.get(sandbox_id).state in (S.WARM, S.DEDUP)


def killed_by(agent: AgentProcess, point: str, call: Callable[[MedesClient], object]) -> None:
    """Starts the agent armed, makes the call, waits until the point has killed it, starts it unarmed."""
    agent.environment["MEDES_FAULT"] = point
    agent.start()
    with agent.client() as client, contextlib.suppress(MedesError):
        wait_until(lambda: settled(client), "recovered before the fault")
        call(client)
    assert agent.process is not None
    wait_until(lambda: agent.process.poll() is not None, f"killed at {point}")  # type: ignore[union-attr]
    agent.end()
    del agent.environment["MEDES_FAULT"]
    agent.start()


def check_all_works(agent: AgentProcess, app: App) -> None:
    """The sandbox answers, can be dedup'd and restored again, and nothing of the old op is left."""
    with agent.client() as client:
        wait_until(lambda: client.get("a").state is not S.RESTORING, "settled")
        client.restore("a", eager=True)
        app.ask()
        assert client.get("a").state is S.WARM
        assert sum(b.pins for b in client.node().bases) == 0
        assert agent.shm_files("sandbox-") == []
        client.dedup("a")
        client.restore("a", eager=True)
        app.ask()


@pytest.mark.parametrize("point", [*DEDUP_POINTS, *NATIVE_DEDUP_POINTS])
def test_killed_in_the_dedup_op(make_cluster: MakeCluster, make_app: MakeApp, point: str) -> None:
    cluster, app = make_cluster(nodes=1, controller=False), make_app(megabytes=2)
    agent = cluster.agents[0]
    with agent.client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
    agent.kill()
    killed_by(agent, point, lambda c: c.dedup("a"))
    check_all_works(agent, app)


@pytest.mark.parametrize("point", [*RESTORE_POINTS, *NATIVE_RESTORE_POINTS])
def test_killed_in_the_restore_op(make_cluster: MakeCluster, make_app: MakeApp, point: str) -> None:
    cluster, app = make_cluster(nodes=1, controller=False), make_app(megabytes=2)
    agent = cluster.agents[0]
    with agent.client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        client.dedup("a")
        client.restore("a", eager=True)  # a working set, so that prefetch is reached
        client.dedup("a")
    agent.kill()
    killed_by(agent, point, lambda c: (c.restore("a"), c.restore("a", eager=True)))
    check_all_works(agent, app)


def test_a_fault_waits_for_the_next_agent(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster, app = make_cluster(nodes=1, touches_per_s_max=0), make_app()
    agent = cluster.agents[0]
    with agent.client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        client.dedup("a")
    agent.kill()
    with app.unanswered(for_s=1.0):
        agent.start()
    with agent.client() as client:
        wait_until(lambda: client.get("a").state is S.WARM, "woken by the fault that had waited")
    app.ask()


@pytest.mark.parametrize("point", ["restore.read", "restore.child_kept", "restore.committed"])
def test_a_child_forked_while_pages_are_missing_waits_for_the_next_agent(
    make_cluster: MakeCluster, make_app: MakeApp, point: str
) -> None:
    cluster, app = make_cluster(nodes=1, controller=False), make_app()
    agent = cluster.agents[0]
    with agent.client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        client.dedup("a")
    agent.kill()
    with ThreadPoolExecutor(1) as pool:
        forked = []
        killed_by(agent, point, lambda _: forked.append(pool.submit(app.fork)))
        forked[0].result()
    check_all_works(agent, app)


def test_sigterm_leaves_dedupd_sandboxes_for_the_next_agent(
    make_cluster: MakeCluster, make_app: MakeApp
) -> None:
    cluster, app = make_cluster(nodes=1), make_app()
    agent = cluster.agents[0]
    with agent.client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        kept = client.dedup("a").sandbox.kept_bytes
    assert agent.end() == 0
    agent.start()
    with agent.client() as client:
        assert client.get("a").state is S.DEDUP
        assert client.get("a").kept_bytes == kept
        client.restore("a", eager=True)
    app.ask()


def dedup_across(cluster: Cluster, make_app: MakeApp) -> tuple[App, App]:
    """A sandbox `a` of the first node, which is a base, and `b` of the second, dedup'd against it."""
    first, second = make_app(seed=1), make_app(seed=2)
    with cluster.agents[0].client() as one, cluster.agents[1].client() as two:
        one.register("counter", pids=[first.pid], sandbox_id="a")
        two.register("counter", pids=[second.pid], sandbox_id="b")
        one.dedup("a")
        assert two.dedup("b").report.remote_pages_read > 0
    return first, second


def test_a_sandbox_with_a_remote_base_survives_kills_on_both_sides(
    make_cluster: MakeCluster, make_app: MakeApp
) -> None:
    cluster = make_cluster(nodes=2)
    holder, user = cluster.agents
    first, second = dedup_across(cluster, make_app)
    holder.kill()
    user.kill()
    user.start()
    with user.client() as two:
        assert two.get("b").state is S.DEDUP
        with pytest.raises(MedesError) as caught:
            two.restore("b", eager=True)
        assert caught.value.code == "peer_unreachable"
        assert two.get("b").state is S.DEDUP
        holder.start()
        wait_until(lambda: _restored(two, "b"), "restored once the holder is back")
        second.ask()
    with holder.client() as one:
        one.restore("a", eager=True)
        first.ask()
        wait_until(lambda: sum(b.pins for b in one.node().bases) == 0, "pins given back")


def _restored(client: MedesClient, sandbox_id: str) -> bool:
    try:
        client.restore(sandbox_id, eager=True)
    except MedesError as error:
        assert error.code == "peer_unreachable"
        return False
    return True


def test_a_restarted_controller_hears_everything_again(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster = make_cluster(nodes=1)
    app = make_app()
    with cluster.agents[0].client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        client.dedup("a")
        cluster.kill_controller()
        wait_until(lambda: not client.node().controller_connected, "missed")
        client.restore("a", eager=True)
        app.ask()
        cluster.start_controller()
        wait_until(lambda: client.node().controller_connected, "joined again")
    with cluster.controller_client() as controller:
        assert controller.statistics().bases == 1
        assert [r.sandbox_id for r in controller.sandboxes()] == ["a"]


def test_a_process_that_dies_while_the_agent_is_away_is_purged(
    make_cluster: MakeCluster, make_app: MakeApp
) -> None:
    cluster, app, other = make_cluster(nodes=1, controller=False), make_app(seed=1), make_app(seed=2)
    agent = cluster.agents[0]
    with agent.client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        client.register("counter", pids=[other.pid], sandbox_id="b")
        client.dedup("a")
    agent.kill()
    app.close()
    other.close()
    agent.start()
    with agent.client() as client:
        assert client.list() == []
    assert agent.shm_files("sandbox-") == []


@pytest.mark.parametrize("touches_per_s_max", [0, 1 << 18], ids=["wakes", "is touched"])
def test_who_needs_pages_while_the_holder_is_away_waits_for_it(
    make_cluster: MakeCluster, make_app: MakeApp, touches_per_s_max: int
) -> None:
    cluster = make_cluster(nodes=2, touches_per_s_max=touches_per_s_max)
    holder, user = cluster.agents
    _, second = dedup_across(cluster, make_app)
    with user.client() as two:
        holder.kill()
        with second.unanswered(for_s=2.0):
            assert two.get("b").state in (S.DEDUP, S.RESTORING)
            holder.start()
        if touches_per_s_max == 0:
            wait_until(lambda: two.get("b").state is S.WARM, "restored once the holder is back")
        second.ask()
        assert two.get("b").state is not S.LOST
