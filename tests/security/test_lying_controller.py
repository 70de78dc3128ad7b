"""A controller that was taken over: its certificate is genuine and what it says is not. Sandboxes may save less; they get
no wrong byte, none is lost, and nobody reads what is another's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medes.client import MedesClient
from medes.errors import MedesError
from medes.types import RestoreReport, SandboxState
from tests.support.cluster import Cluster, wait_until
from tests.support.counter_app import App
from tests.support.lying_controller import LIES, SECRET_DOMAIN
from tests.support.metrics import sample
from tests.support.ports import free_port

pytestmark = pytest.mark.live

ROUNDS = 3
BASES_BYTES_MAX = 64 << 20


@pytest.mark.parametrize("lie", LIES)
def test_no_wrong_byte_and_nobody_lost(
    lie: str, make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    cluster = make_cluster(
        nodes=2,
        controller_program=("tests.support.lying_controller", lie),
        node_flags={"n0": {"metrics_address": metrics}},
        base_store_limit_bytes=BASES_BYTES_MAX,
    )
    holder, user = cluster.agents
    theirs, first, app = make_app(4, seed=3), make_app(4, seed=1), make_app(4, seed=2)
    with holder.client() as one, user.client() as two:
        one.register("f", pids=[theirs.pid], sandbox_id="theirs", domain=SECRET_DOMAIN)
        one.dedup("theirs", make_base=True)
        one.register("f", pids=[first.pid], sandbox_id="a")
        one.dedup("a", make_base=True)
        two.register("f", pids=[app.pid], sandbox_id="b")
        for _ in range(ROUNDS):
            there_and_back(two, "b", app)
        for sandbox_id, other in (("theirs", theirs), ("a", first)):
            restored(one, sandbox_id, other)
        secret = one.bases(domain=SECRET_DOMAIN)
        assert secret and not any("n1" in base.pins_by_node for base in secret), "pinned by nobody else"
        assert two.node().base_bytes <= BASES_BYTES_MAX
    if lie in ("unknown_bases", "other_domains", "swapped"):
        assert sample(metrics, "medes_agent_page_server_bytes") == 0, "no page was sent"
    for agent in cluster.agents:
        assert "Traceback" not in agent.log.read_text(), lie


def there_and_back(client: MedesClient, sandbox_id: str, app: App) -> None:
    client.dedup(sandbox_id)
    restored(client, sandbox_id, app)


def restored(client: MedesClient, sandbox_id: str, app: App) -> RestoreReport:
    report = client.restore(sandbox_id, eager=True).report
    assert report is not None and report.was_dedup
    app.ask()
    wait_until(lambda: client.get(sandbox_id).state is SandboxState.WARM, "its last page")
    return report


def test_pins_outlive_what_a_controller_says(
    make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    """An honest one is replaced by one that says that nobody is there, that every node must join again and that stores
    are others, while a sandbox sleeps; its holder is started anew meanwhile, so that pins are told again."""
    cluster = make_cluster(nodes=2)
    holder, user = cluster.agents
    first, app = make_app(4, seed=1), make_app(4, seed=2)
    with holder.client() as one:
        one.register("f", pids=[first.pid], sandbox_id="a")
        one.dedup("a")
    with user.client() as two:
        two.register("f", pids=[app.pid], sandbox_id="b")
        assert two.dedup("b").report.remote_pages_read > 0
        for lie in ("membership", "stores"):
            cluster.kill_controller()
            cluster._controller_program = ("tests.support.lying_controller", lie)
            cluster.start_controller()
            holder.kill()
            holder.start()
            if lie == "stores":
                with holder.client() as one:
                    wait_until(lambda: one.node().controller_connected, "joined")
            wait_until(lambda: try_restore(two), "its pages are there", 60)
            app.ask()
            wait_until(lambda: two.get("b").state is SandboxState.WARM, "its last page")
            two.dedup("b")
    with holder.client() as one:
        assert one.get("a").state is SandboxState.DEDUP
        restored(one, "a", first)


def try_restore(client: MedesClient) -> bool:
    """Whether it runs; that a peer is away for a moment is no loss."""
    try:
        client.restore("b")
    except MedesError as error:
        assert error.transient, error
        return False
    return True
