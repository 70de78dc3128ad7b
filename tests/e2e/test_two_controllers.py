"""Two controllers on one Redis: the first is killed, ops and look-ups go on with the second, and back."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from medes.client import ControllerClient, MedesClient
from medes.types import DedupReport
from medes.types import SandboxState as S
from tests.support.cluster import CONTROLLER_FLAGS, Cluster, wait_until
from tests.support.controller_process import ControllerProcess
from tests.support.counter_app import App
from tests.support.ports import free_port
from tests.support.redis_server import redis_server

pytestmark = pytest.mark.live


class Controllers:
    """Two, on one Redis."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self._processes: dict[int, ControllerProcess] = {}

    def start(self, at: int) -> None:
        self._processes[at] = ControllerProcess(
            *CONTROLLER_FLAGS, "--store", self._url, listen=self.addresses[at]
        )

    def kill(self, at: int) -> None:
        self._processes.pop(at).end(signal.SIGKILL)

    def close(self) -> None:
        for at in list(self._processes):
            self.kill(at)

    def wait_joined(self, at: int) -> None:
        def all_there() -> bool:
            with ControllerClient(self.addresses[at]) as client:
                return {n.endpoints.node_id for n in client.nodes() if n.alive} == {"n0", "n1"}

        wait_until(all_there, f"joined {self.addresses[at]}")

    def lookups(self, at: int) -> int:
        with ControllerClient(self.addresses[at]) as client:
            return client.statistics().lookups


def dedup(client: MedesClient, app: App, sandbox_id: str) -> DedupReport:
    client.register("counter", pids=[app.pid], sandbox_id=sandbox_id)
    return client.dedup(sandbox_id).report


def restore(client: MedesClient, app: App, sandbox_id: str) -> None:
    assert client.restore(sandbox_id, eager=True).report.was_dedup
    wait_until(lambda: client.get(sandbox_id).state is S.WARM, "complete")
    app.ask()


def test_ops_and_lookups_go_on_with_the_next_controller_and_back(
    make_cluster: Callable[..., Cluster], make_app: Callable[..., App], tmp_path: Path
) -> None:
    with redis_server(tmp_path) as url, contextlib.closing(Controllers(url)) as controllers:
        controllers.start(0)
        controllers.start(1)
        cluster = make_cluster(
            nodes=2,
            controller=False,
            controllers=",".join(controllers.addresses),
            remote_index_limit_bytes=0,  # so that every op of the second node asks
        )
        cluster.wait_joined()
        controllers.wait_joined(0)
        apps = [make_app(seed=seed) for seed in range(5)]
        holder, user = (agent.client() for agent in cluster.agents)
        with holder, user:
            assert dedup(holder, apps[0], "a").base_bytes_added > 0
            assert dedup(user, apps[1], "b").remote_pages_read > 0
            for n, (gone, left) in enumerate(((0, 1), (1, 0))):
                controllers.kill(gone)
                # Without a controller as well: a restore never asks one.
                restore(user, apps[1], "b")
                controllers.wait_joined(left)
                cluster.wait_joined()
                before = controllers.lookups(left)
                report = user.dedup("b").report
                assert report.remote_pages_read > 0, report.notes
                report = dedup(user, apps[2 + n], f"c{n}")
                assert (report.base_bytes_added, report.remote_pages_read > 0) == (0, True), report.notes
                assert controllers.lookups(left) >= before + 1
                restore(user, apps[2 + n], f"c{n}")
                controllers.start(gone)
            restore(holder, apps[0], "a")
