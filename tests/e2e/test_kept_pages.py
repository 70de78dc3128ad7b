"""Real agents: what restores read of another node's base is kept for the next ones, paid for in the node's sums, and goes
with the base."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medes.client import MedesClient
from medes.types import SandboxState as S
from tests.e2e.test_learnt_bases import metric, restart
from tests.support.cluster import Cluster, wait_until
from tests.support.counter_app import App
from tests.support.ports import free_port

pytestmark = pytest.mark.live

MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]
MEGABYTES = 16
KEPT, USED = "medes_agent_remote_pages_kept_bytes", "medes_agent_remote_pages_kept_used"


def ask_asleep(client: MedesClient, app: App, sandbox_id: str) -> int:
    """Dedup, a request that its runtime reports, the rest of the restore. The base pages that were read of peers."""
    client.dedup(sandbox_id)
    assert client.restore(sandbox_id).report.was_dedup
    app.ask()
    wait_until(lambda: client.get(sandbox_id).state is S.WARM, "complete")
    report = client.get(sandbox_id).last_restore
    assert report is not None
    return sum(report.pages_by_transport.values())


def test_what_restores_read_is_kept_within_its_limit_and_goes_with_the_base(
    make_cluster: MakeCluster, make_app: MakeApp
) -> None:
    cluster = make_cluster(nodes=2)
    holder, user = cluster.agents
    metrics = f"127.0.0.1:{free_port()}"
    restart(user, metrics_address=metrics)
    cluster.wait_joined()
    apps = [make_app(MEGABYTES, seed) for seed in range(3)]
    with holder.client() as one, user.client() as two:
        one.register("counter", pids=[apps[0].pid], sandbox_id="a")
        assert one.dedup("a").report.base_bytes_added > 0
        two.register("counter", pids=[apps[1].pid], sandbox_id="b")
        first = ask_asleep(two, apps[1], "b")
        assert first > 0
        # It is kept behind the restore's end.
        kept = wait_until(lambda: metric(metrics, KEPT), "kept")
        assert metric(metrics, USED) == 0
        assert ask_asleep(two, apps[1], "b") < first
        assert metric(metrics, USED) > 0
        saved = metric(metrics, "medes_agent_node_saved_bytes")
        assert saved <= -kept < 0, "nothing is dedup'd here, and what is kept has its price"

        # Another tenant's sandbox is served from none of it.
        used = metric(metrics, USED)
        two.register("counter", pids=[apps[2].pid], sandbox_id="c", tenant="blue")
        ask_asleep(two, apps[2], "c")
        assert metric(metrics, USED) == used

    # Nothing rests on it: an agent that was killed has nothing kept, and restores all the same.
    with user.client() as two:
        two.dedup("b")
    user.kill()
    user.set(remote_pages_limit_bytes=64 << 10, base_keep_period_s=0.0)
    user.start()
    cluster.wait_joined()
    with user.client() as two:
        assert metric(metrics, KEPT) == 0
        two.restore("b")
        apps[1].ask()
        wait_until(lambda: two.get("b").state is S.WARM, "complete")
        # A base that nobody pins goes, at once by this setting; until then the limit holds.
        assert metric(metrics, KEPT) <= 64 << 10
        wait_until(lambda: metric(metrics, KEPT) == 0, "forgotten")
