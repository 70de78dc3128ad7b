"""One node, one name: a second agent of a name is refused, believed by nobody, and harms nobody."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from medes.client import MedesClient
from medes.errors import PeerUnreachableError
from medes.types import LifecycleSettings
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App

MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]
HELD = LifecycleSettings(disabled=True)
LEASE = ("--lease-ms", "60000")


def register(client: MedesClient, app: App, sandbox_id: str) -> None:
    client.register("counter", pids=[app.pid], sandbox_id=sandbox_id, lifecycle=HELD)


def another(cluster: Cluster, tmp_path: Path, *, state_of: AgentProcess | None = None) -> AgentProcess:
    """A second agent that calls itself n0: with a state of its own, or a copy of another's."""
    assert cluster.controller is not None
    folder = tmp_path / "another"
    folder.mkdir()
    agent = AgentProcess(folder, "n0", cluster.controller.address, state_dir=folder / "state")
    if state_of is not None:
        shutil.copytree(state_of.state_dir, folder / "state")
    return agent


@pytest.mark.live
@pytest.mark.parametrize("cloned", [False, True])
def test_an_impostor_is_refused_and_nobody_is_lost_on_its_word(
    make_cluster: MakeCluster, make_app: MakeApp, tmp_path: Path, cloned: bool
) -> None:
    cluster = make_cluster(nodes=2, controller_flags=LEASE)
    true_one, user = cluster.agents
    impostor = another(cluster, tmp_path, state_of=true_one if cloned else None)
    held, app = make_app(seed=1), make_app(seed=2)
    try:
        with true_one.client() as one, user.client() as two:
            register(one, held, "base")
            one.dedup("base")
            register(two, app, "a")
            assert two.dedup("a").report.remote_pages_read > 0
            if cloned:
                shutil.rmtree(impostor.state_dir)
                shutil.copytree(true_one.state_dir, impostor.state_dir)
        # Beside the true one: refused, and said so on both sides; the true one hears nothing of it.
        impostor.start()
        wait_until(lambda: "another agent has this name" in impostor.log_tail(), "the impostor says so")
        assert " error " in next(
            x for x in impostor.log_tail().splitlines() if "another agent has this name" in x
        )
        with true_one.client() as one, impostor.client() as other:
            assert one.node().controller_connected and not other.node().controller_connected
        assert "announcing everything again" not in true_one.log_tail()
        impostor.end()
        # In the true one's place, at its very address: what it lacks is no loss.
        true_one.kill()
        impostor.set(peer_address=true_one.flag("peer_address"), page_port=true_one.flag("page_port"))
        impostor.start()
        user.kill()
        user.start()
        with user.client() as two:
            wait_until(lambda: "another agent answers for node n0" in user.log_tail(), "it is seen through")
            assert two.get("a").state is S.DEDUP
            with pytest.raises(PeerUnreachableError):
                two.restore("a")
            assert two.get("a").state is S.DEDUP
            impostor.end()
            true_one.start()
            _restored(two)
            app.ask()
    finally:
        impostor.clean()
    assert cluster.controller is not None
    _, said = cluster.controller.end(signal.SIGTERM)
    refused = [line for line in said.splitlines() if "a node was refused" in line]
    assert refused and all(" error " in line for line in refused)


@pytest.mark.live
def test_a_clone_gives_up_nothing_that_its_original_has_pinned(
    make_cluster: MakeCluster, make_app: MakeApp, tmp_path: Path
) -> None:
    """It knows its original's peers, has none of its sandboxes, and would tell them that nothing is needed there."""
    cluster = make_cluster(nodes=2, controller_flags=LEASE)
    holder, user = cluster.agents
    held, app = make_app(seed=1), make_app(seed=2)
    with holder.client() as one, user.client() as two:
        register(one, held, "base")
        one.dedup("base")
        register(two, app, "a")
        assert two.dedup("a").report.remote_pages_read > 0
        pins = [b.pins for b in one.node().bases]
        clone = another(cluster, tmp_path, state_of=user)
        clone.set(node_id="n1")
        try:
            clone.start()
            wait_until(lambda: "pins at n0: " in clone.log_tail(), "the clone has asked")
            wait_until(lambda: "calls itself node n1" in holder.log_tail(), "the holder says so")
            assert [b.pins for b in one.node().bases] == pins
        finally:
            clone.clean()
        two.restore("a", eager=True)
        app.ask()


@pytest.mark.live
def test_after_a_reboot_a_node_joins_before_it_tells_peers_of_its_pins(
    make_cluster: MakeCluster, make_app: MakeApp, tmp_path: Path
) -> None:
    """Its store is in another place by then (here: a copy of the folder), as a clone's is until it has joined."""
    cluster = make_cluster(nodes=2)
    holder, user = cluster.agents
    held, app = make_app(seed=1), make_app(seed=2)
    with holder.client() as one, user.client() as two:
        register(one, held, "base")
        one.dedup("base")
        register(two, app, "a")
        assert two.dedup("a").report.remote_pages_read > 0
        user.kill()
        shutil.copytree(user.state_dir, tmp_path / "copy")
        shutil.rmtree(user.state_dir)
        (tmp_path / "copy").rename(user.state_dir)
        user.start()
        wait_until(lambda: two.node().controller_connected, "joined")
        two.restore("a", eager=True)
        app.ask()
    assert "calls itself node n1" not in holder.log_tail()
    assert "pins at n0: " not in user.log_tail()


def _restored(client: MedesClient) -> None:
    def attempt() -> bool:
        try:
            client.restore("a", eager=True)
        except PeerUnreachableError:
            return False  # the true one has just come back
        return True

    wait_until(attempt, "restored from the true one's pages")
    assert client.get("a").state is S.WARM


def test_a_restarted_agent_joins_long_before_its_lease_ends(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1, controller_flags=LEASE, driver="image")
    agent = cluster.agents[0]
    for _ in range(2):
        agent.kill()
        agent.start()
        with agent.client() as client:
            # wait_until gives it half the lease.
            wait_until(lambda c=client: c.node().controller_connected, "joined again")
    assert "refuses" not in agent.log_tail()


def test_addresses_that_nobody_reaches_are_not_advertised(tmp_path: Path) -> None:
    """The controller need not be there: the settings say enough."""
    for number, (flags, text) in enumerate(
        (
            ({}, "agent.peer_advertise: other nodes would be told 127.0.0.1:"),
            ({"peer_address": "0.0.0.0:0"}, "agent.peer_advertise: other nodes would be told 0.0.0.0:"),
            (
                {"peer_advertise": "192.0.2.7:7071"},
                "agent.page_advertise_host: other nodes would be told 127.0.0.1:",
            ),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        agent = AgentProcess(folder, "n0", "192.0.2.1:7070", driver="image", **flags)
        try:
            with pytest.raises(AssertionError, match=text):
                agent.start()
            assert not agent.state_dir.exists() and not agent.shm.exists()
            agent.environment["MEDES_AGENT_ADVERTISE_LOCAL"] = "true"
            agent.start()
        finally:
            agent.clean()
