"""What may go wrong around a sandbox: a clear error, and the sandbox stays warm and answers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from medes.client import MedesClient
from medes.errors import MedesError, StoreFullError, TracedError
from medes.types import SandboxState as S
from tests.support.cluster import Cluster, wait_until
from tests.support.counter_app import App

pytestmark = pytest.mark.live

MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]

# Attaches as gdb and strace do, says so, and stays.
TRACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(0x4206, int(sys.argv[1]), None, None) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
print("attached", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def traced(pid: int) -> Iterator[None]:
    tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(pid)], stdout=subprocess.PIPE, text=True)
    try:
        assert tracer.stdout is not None and tracer.stdout.readline() == "attached\n"
        yield
    finally:
        tracer.kill()
        tracer.wait()
        if tracer.stdout is not None:
            tracer.stdout.close()


def still_warm(client: MedesClient, app: App) -> None:
    assert client.get("a").state is S.WARM
    app.ask()


def test_a_second_tracer(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster, app = make_cluster(nodes=1), make_app()
    with cluster.agents[0].client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        with traced(app.pid):
            with pytest.raises(TracedError):
                client.dedup("a")
            still_warm(client, app)
        client.dedup("a")
        client.restore("a", eager=True)
        still_warm(client, app)


@pytest.mark.parametrize("limit", ["base_store_limit_bytes", "patch_store_limit_bytes"])
def test_a_full_store(make_cluster: MakeCluster, make_app: MakeApp, limit: str) -> None:
    cluster, app = make_cluster(nodes=1, **{limit: 64 << 10}), make_app()
    with cluster.agents[0].client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        with pytest.raises(StoreFullError, match="fit"):
            client.dedup("a")
        still_warm(client, app)
        assert cluster.agents[0].shm_files("sandbox-") == []


def test_a_process_that_exits_during_the_dedup_op(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    """At several moments of the op, until one of them has hit it in the middle."""
    cluster = make_cluster(nodes=1)
    codes: list[str] = []
    with cluster.agents[0].client() as client:
        for n in range(20):
            if n >= 4 and "process_gone" in codes:
                break
            app = make_app(megabytes=16, seed=n)
            client.register("counter", pids=[app.pid], sandbox_id=f"s{n}")
            timer = threading.Timer(0.02 * n, app.process.kill)
            timer.start()
            try:
                client.dedup(f"s{n}")
            except MedesError as error:
                assert error.code in ("process_gone", "not_found", "io"), error
                codes.append(error.code)
            timer.join()
            wait_until(lambda i=f"s{n}": i not in {s.sandbox_id for s in client.list()}, "purged")
        assert cluster.agents[0].shm_files("sandbox-") == []
        assert sum(b.pins for b in client.node().bases) == 0
    assert "process_gone" in codes, codes


def test_the_controller_is_gone_at_the_lookup(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster = make_cluster(nodes=1)
    first, second = make_app(seed=1), make_app(seed=2)
    with cluster.agents[0].client() as client:
        client.register("counter", pids=[first.pid], sandbox_id="a")
        client.register("counter", pids=[second.pid], sandbox_id="b")
        client.dedup("a")
        cluster.kill_controller()
        report = client.dedup("b").report
        assert report.base_bytes_added == 0
        assert report.gross_saved_bytes > 0.5 * report.warm_bytes
        client.restore("b", eager=True)
        second.ask()


@pytest.mark.parametrize("fault", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_the_controller_goes_during_the_lookup(
    make_cluster: MakeCluster, make_app: MakeApp, fault: str
) -> None:
    """The call is under way when the controller is killed, or stops answering: the op goes on without the registry."""
    cluster = make_cluster(nodes=1, controller_program=("tests.support.faulty_controller", fault))
    app = make_app()
    with cluster.agents[0].client() as client:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        report = client.dedup("a").report
        assert cluster.controller is not None and cluster.controller.process.stdout is not None
        assert cluster.controller.process.stdout.readline() == "lookup\n"
        assert (cluster.controller.process.poll() is None) == (fault == "hangs")
        assert any("registry not asked" in note.text for note in report.notes), report.notes
        assert client.get("a").state is S.DEDUP
        app.ask()
        wait_until(lambda: client.get("a").state is S.WARM, "restored")


def test_the_holder_of_the_base_goes_before_the_pin(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster = make_cluster(nodes=2)
    first, second = make_app(seed=1), make_app(seed=2)
    with cluster.agents[0].client() as one, cluster.agents[1].client() as two:
        one.register("counter", pids=[first.pid], sandbox_id="a")
        two.register("counter", pids=[second.pid], sandbox_id="b")
        one.dedup("a")
        cluster.agents[0].kill()
        result = two.dedup("b")
        assert any("remote bases not used" in note.text for note in result.report.notes), result.report.notes
        two.restore("b", eager=True)
        second.ask()
