"""Controller and agents as processes, real Python servers as sandboxes: dedup, restore, wake, remote bases."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medes.client import MedesClient
from medes.errors import (
    BusyError,
    CancelledError,
    LimitExceededError,
    MedesError,
    NotFoundError,
    UnsupportedError,
)
from medes.types import LifecycleSettings
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster, wait_until
from tests.support.counter_app import App

pytestmark = pytest.mark.live

MakeCluster = Callable[..., Cluster]
MakeApp = Callable[..., App]
CGROUP_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory")
HELD = LifecycleSettings(disabled=True)


def register(client: MedesClient, app: App, sandbox_id: str, **more: object) -> None:
    client.register("counter", pids=[app.pid], sandbox_id=sandbox_id, **more)  # type: ignore[arg-type]


def private_bytes(app: App) -> int:
    total = 0
    for line in Path(f"/proc/{app.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total


def test_dedup_and_restore_on_two_nodes(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster = make_cluster(nodes=2)
    apps = [make_app(seed=n) for n in range(3)]
    with cluster.agents[0].client() as one, cluster.agents[1].client() as two:
        register(one, apps[0], "a")
        register(one, apps[1], "b")
        register(two, apps[2], "c")
        first, local, remote = one.dedup("a").report, one.dedup("b").report, two.dedup("c").report
        assert first.base_bytes_added > 0
        assert local.base_bytes_added == remote.base_bytes_added == 0
        assert remote.remote_pages_read > 0
        for report, app in ((first, apps[0]), (local, apps[1]), (remote, apps[2])):
            left = private_bytes(app)
            assert abs(left - report.resident_bytes) <= 64 * 4096
            assert left < 0.3 * report.warm_bytes
        assert two.get("c").transport_by_peer == {"n0": "tcp+tls"}
        for client, sandbox_id, app in ((one, "a", apps[0]), (one, "b", apps[1]), (two, "c", apps[2])):
            result = client.restore(sandbox_id)
            assert result.report.was_dedup and result.sandbox.state in (S.RESTORING, S.WARM)
            app.ask()
            wait_until(lambda c=client, i=sandbox_id: c.get(i).state is S.WARM, "complete")
            last = client.get(sandbox_id).last_restore
            assert last is not None and last.complete_us > 0
            app.ask()
        node = one.node()
        assert sum(b.pins for b in node.bases) == 0
        assert [b.base.function for b in node.bases] == ["counter"]
    with cluster.controller_client() as controller:
        assert {r.sandbox_id for r in controller.sandboxes()} == {"a", "b", "c"}


@pytest.mark.parametrize("eager", [False, True])
def test_state_survives_many_rounds(make_cluster: MakeCluster, make_app: MakeApp, eager: bool) -> None:
    cluster, app = make_cluster(nodes=1), make_app()
    with cluster.agents[0].client() as client:
        register(client, app, "a")
        for n in range(5):
            client.dedup("a")
            client.restore("a", eager=eager)
            app.ask()
            app.touch(n * 7)
        sandbox = client.get("a")
        assert (sandbox.dedup_count, sandbox.restore_count) == (5, 5)


def test_a_request_on_the_socket_wakes_the_sandbox(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster, app = make_cluster(nodes=1, touches_per_s_max=0), make_app()
    with cluster.agents[0].client() as client:
        register(client, app, "a", lifecycle=HELD)
        client.dedup("a")
        app.ask()
        wait_until(lambda: client.get("a").state is S.WARM, "restored by its own fault")
        last = client.get("a").last_restore
        assert last is not None and last.demand_woken
        app.ask()


def test_activity_wakes_before_it_answers(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster, app = make_cluster(nodes=1), make_app()
    with cluster.agents[0].client() as client:
        register(client, app, "a")
        client.dedup("a")
        assert client.begin("a").state in (S.RESTORING, S.RUNNING)
        app.ask()
        wait_until(lambda: client.get("a").state is S.RUNNING, "running")
        assert client.end("a").state is S.WARM


def test_a_runtime_that_only_reports_activity_gets_deduplication(
    make_cluster: MakeCluster, make_app: MakeApp
) -> None:
    cluster, app = make_cluster(nodes=1, idle_period_s=0.5), make_app()
    with cluster.agents[0].client() as client:
        register(client, app, "a")
        wait_until(lambda: client.get("a").state is S.DEDUP, "dedup'd by the idle timer")
        client.begin("a")
        app.ask()
        client.end("a")
        wait_until(lambda: client.get("a").dedup_count >= 2, "dedup'd again")
        app.ask()


def test_requests_under_dedup_are_all_answered_right(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster, app = make_cluster(nodes=1), make_app()
    with cluster.agents[0].client() as client:
        register(client, app, "a", lifecycle=HELD)
        stop = time.monotonic() + 3.0
        errors: list[str] = []

        def dedup_all_the_time() -> None:
            with cluster.agents[0].client() as other:
                while time.monotonic() < stop:
                    try:
                        other.dedup("a")
                    except MedesError as error:
                        errors.append(error.code)

        thread = threading.Thread(target=dedup_all_the_time)
        thread.start()
        while time.monotonic() < stop:
            client.begin("a")
            app.ask()
            client.end("a")
        thread.join()
        assert set(errors) <= {"cancelled", "wrong_state"}
        app.ask()


def test_children_that_come_and_go_under_dedup(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    """A process that ends in the middle of an op is a reason to try again, and none to give the sandbox up."""
    cluster, app = make_cluster(nodes=1), make_app()
    outcomes = []
    with cluster.agents[0].client() as client, ThreadPoolExecutor(1) as pool:
        client.register("counter", pids=[app.pid], sandbox_id="a")
        end_s = time.monotonic() + 4

        def fork() -> None:
            while time.monotonic() < end_s:
                app.fork()

        forking = pool.submit(fork)
        while not forking.done():
            try:
                client.dedup("a")
                outcomes.append("done")
            except (BusyError, CancelledError) as error:
                outcomes.append(error.code)
            client.restore("a")
        forking.result()
        app.ask()
    assert "done" in outcomes


def test_watch_tells_every_change(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster, app = make_cluster(nodes=1), make_app()
    with cluster.agents[0].client() as client, cluster.agents[0].client() as watcher:
        seen: list[tuple[S, S]] = []

        def watch() -> None:
            for event in watcher.watch("counter"):
                seen.append((event.previous, event.sandbox.state))
                if event.sandbox.state is S.PURGED:
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        time.sleep(0.3)
        register(client, app, "a")
        client.dedup("a")
        client.restore("a", eager=True)
        client.purge("a")
        thread.join(20)
        assert seen == [
            (S.UNSPECIFIED, S.WARM),
            (S.WARM, S.DEDUPING),
            (S.DEDUPING, S.DEDUP),
            (S.DEDUP, S.RESTORING),
            (S.RESTORING, S.WARM),
            (S.WARM, S.PURGED),
        ]


def test_pressure_dedups_the_longest_idle_first(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster = make_cluster(nodes=1, memory_limit_bytes=1 << 20)
    first, second = make_app(seed=1), make_app(seed=2)
    with cluster.agents[0].client() as client:
        register(client, first, "old")
        time.sleep(0.05)
        register(client, second, "new")
        wait_until(lambda: client.get("old").state is S.DEDUP, "the longest idle one is dedup'd")
        wait_until(lambda: client.get("new").state is S.DEDUP, "and then the other")
        assert client.node().pressure.startswith("high")


def test_purge_on_exit_leaves_nothing(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster = make_cluster(nodes=0)
    agent = AgentProcess(cluster.folder, "solo", "").start("--purge-on-exit")
    cluster.agents.append(agent)
    kept, ended = make_app(seed=1), make_app(seed=2)
    with agent.client() as client:
        register(client, kept, "kept")
        register(client, ended, "ended", purge_kills=True)
        client.dedup("kept")
        client.dedup("ended")
    assert agent.end(signal.SIGTERM) == 0
    kept.ask()
    wait_until(lambda: not ended.alive(), "purge_kills ends the process")
    assert not agent.shm.exists()
    assert not agent.socket.exists()
    assert not (agent.state_dir / "journal").exists()


def test_the_socket_is_private(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1)
    agent = cluster.agents[0]
    assert agent.socket.stat().st_mode & 0o777 == 0o600
    assert agent.shm.stat().st_mode & 0o777 == 0o700


def test_unknown_sandboxes_and_too_much_input(make_cluster: MakeCluster) -> None:
    with make_cluster(nodes=1).agents[0].client() as client:
        for call in (client.get, client.dedup, client.restore, client.purge, client.begin):
            with pytest.raises(NotFoundError):
                call("nobody")
        with pytest.raises(NotFoundError):
            client.register("f", pids=[2**22 + 1])
        with pytest.raises((LimitExceededError, MedesError)):
            client.register("f", pids=list(range(2, 6000)))
        assert os.getpid() > 1 and client.list() == []


def test_a_held_sandbox_wakes_only_when_asked(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster, app = make_cluster(nodes=1), make_app()
    with cluster.agents[0].client() as client:
        register(client, app, "a")
        client.dedup("a", hold_frozen=True)
        with app.unanswered(for_s=1.0):
            assert client.get("a").state is S.DEDUP
            client.restore("a", eager=True)
        app.ask()


def test_a_storm_of_restores(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    cluster = make_cluster(nodes=1, restores_concurrent_max=4)
    apps = [make_app(megabytes=2, seed=n) for n in range(12)]
    with cluster.agents[0].client() as client:
        for n, app in enumerate(apps):
            register(client, app, f"s{n}")
            client.dedup(f"s{n}")
        with ThreadPoolExecutor(len(apps)) as pool:
            reports = list(pool.map(lambda n: client.restore(f"s{n}").report, range(len(apps))))
            list(pool.map(lambda app: app.ask(), apps))
        assert all(r.was_dedup for r in reports)
        assert max(r.queue_us for r in reports) > 0
        wait_until(lambda: all(s.state is S.WARM for s in client.list()), "all warm")


def test_a_sandbox_by_cgroup(make_cluster: MakeCluster, make_app: MakeApp) -> None:
    root = next((p for p in map(Path, CGROUP_ROOTS) if (p / "cgroup.procs").exists()), None)
    if root is None or not os.access(root, os.W_OK):
        pytest.skip("no writable cgroup hierarchy here")
    cluster, app = make_cluster(nodes=1), make_app()
    group = root / f"medes-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(app.pid))
    except OSError as error:
        pytest.skip(f"cannot make a cgroup here: {error}")
    try:
        with cluster.agents[0].client() as client:
            client.register("counter", cgroup=str(group), sandbox_id="a")
            assert client.dedup("a").report.gross_saved_bytes > 0
            client.restore("a", eager=True)
            app.ask()
    finally:
        app.close()
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "empty cgroup")
        group.rmdir()


@pytest.mark.live
@pytest.mark.parametrize(
    ("capabilities", "uid"), [("+sys_ptrace", 65534), ("+sys_ptrace,+dac_override", 65533)]
)
def test_an_agent_that_is_not_root_needs_few_rights(tmp_path: Path, capabilities: str, uid: int) -> None:
    """For sandboxes of its own user and of another one, neither of which could have a userfaultfd of itself."""
    device = Path("/dev/userfaultfd")
    if os.geteuid() != 0 or shutil.which("setpriv") is None or not device.exists():
        pytest.skip("needs root and setpriv to give rights up, and the device")
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    rights = [
        f"--bounding-set=-all,{capabilities}",
        f"--inh-caps=-all,{capabilities}",
        f"--ambient-caps={capabilities}",
    ]
    agent = AgentProcess(tmp_path, "ambient", "")
    with tempfile.TemporaryDirectory(prefix="medes-") as folder:
        # A copy that its user may read, in the place of the real one, for the agent only.
        copy = f"{folder}/userfaultfd"
        os.mknod(copy, 0o600 | stat.S_IFCHR, device.stat().st_rdev)
        for path in (folder, copy):
            os.chown(path, 65534, 65534)
        script = f'mount --bind {copy} {device} && exec "$@"'
        agent.prefix = ["unshare", "--mount", "sh", "-c", script, "sh", *user, *rights]
        agent.set(state_dir=folder, cluster_dir=f"{folder}/cluster")
        sandbox = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        try:
            agent.start()
            with App(seed=1, prefix=sandbox) as app, agent.client() as client:
                client.register("counter", pids=[app.pid], sandbox_id="a")
                report = client.dedup("a").report
                assert report.resident_bytes < 0.5 * report.warm_bytes
                app.ask()
        finally:
            agent.clean()


def test_without_rights_nothing_calls_itself_dedup(tmp_path: Path) -> None:
    """Root in name only, as in a locked-down container: no capabilities, so no userfaultfd. The image driver runs the
    pipeline where it is asked for by name, and says that it saves nothing."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to give rights up")
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    agent = AgentProcess(tmp_path, "weak", "")
    agent.prefix = powerless
    try:
        agent.start()
        with App(seed=1, prefix=powerless) as app, agent.client() as client:
            if client.node().live_driver.startswith("available"):
                pytest.skip("the live driver needs no rights here")
            for asked in ("", "live"):
                with pytest.raises(UnsupportedError, match="live driver cannot run") as refused:
                    client.register("counter", pids=[app.pid], sandbox_id="b", driver=asked)
                assert "CAP_SYS_PTRACE" in refused.value.hint
            assert client.list() == []
            client.register("counter", pids=[app.pid], sandbox_id="a", driver="image")
            report = client.dedup("a").report
            assert report.gross_saved_bytes is not None
            assert report.saved_bytes <= report.gross_saved_bytes < 0
            assert client.restore("a", eager=True).report.pages_total > 1000
            app.ask()
    finally:
        agent.clean()
