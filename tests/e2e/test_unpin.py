"""Pins of a node that will not come back, given up by command on the node that holds the bases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from medes.client import MedesClient
from medes.errors import InvalidArgumentError, NotFoundError, WrongStateError
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App

pytestmark = [pytest.mark.live, pytest.mark.slow]
MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]


@pytest.fixture
def pair(make_cluster: MakeCluster, make_app: MakeApp) -> tuple[AgentProcess, AgentProcess, App]:
    """A node that holds a base, one whose sandbox "b" needs it, and that sandbox."""
    holder, user = make_cluster(nodes=2, page_lease_s=2.0).agents
    first, second = make_app(), make_app(seed=2)
    with holder.client() as client:
        client.register("counter", pids=[first.pid], sandbox_id="a")
        client.dedup("a")
    with user.client() as client:
        client.register("counter", pids=[second.pid], sandbox_id="b")
        client.dedup("b")
    with holder.client() as client:
        assert "n1" in pinned_by(client)
    return holder, user, second


def pinned_by(client: MedesClient) -> set[str]:
    return {node for base in client.bases() for node in base.pins_by_node}


def given_up(client: MedesClient) -> tuple[int, int] | None:
    try:
        return client.unpin_node("n1")
    except WrongStateError:
        return None


def test_a_node_that_is_gone_is_forgotten_for_good(pair: tuple[AgentProcess, AgentProcess, App]) -> None:
    holder, user, _ = pair
    with holder.client() as client:
        with pytest.raises(WrongStateError, match=r"heard of|member"):
            client.unpin_node("n1")
        with pytest.raises(NotFoundError, match="n1"):
            client.unpin_node("n2")
        for name in ("n0", "(unknown)", ""):
            with pytest.raises(InvalidArgumentError):
                client.unpin_node(name)
        assert "n1" in pinned_by(client)
        user.kill()
        pins, _ = wait_until(lambda: given_up(client), "its leases are over")
        assert pins > 0
        assert "n1" not in pinned_by(client)
    holder.kill()
    holder.start()
    with holder.client() as client:
        assert "n1" not in pinned_by(client)
        assert client.get("a").state is S.DEDUP


def test_by_force_while_it_lives(pair: tuple[AgentProcess, AgentProcess, App]) -> None:
    """It pins again what is still there, when it reconciles."""
    holder, user, app = pair
    done = subprocess.run(
        [sys.executable, "-m", "medes", "base", "unpin", "--node=n1", "--force", "--agent", holder.address],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pins given up" in done.stdout
    with holder.client() as client:
        assert "n1" not in pinned_by(client)
        user.kill()
        user.start()
        wait_until(lambda: "n1" in pinned_by(client), "reconciled")
    app.ask()
