"""Both daemons start under what their installed units impose, and the agent dedups a process with a seccomp filter."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medes.client import ControllerClient, MedesClient
from medes.types import LifecycleSettings, SandboxState
from tests.support import seccomp
from tests.support.cluster import wait_until
from tests.support.counter_app import App
from tests.support.ports import free_port
from tests.support.unit_file import Unit

ROOT = Path(__file__).resolve().parents[2]
# As in a container: no capabilities, so no right to userfaultfd of its own, and a seccomp filter.
CONTAINED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, seccomp.__file__)
UNITS = ("medes-controller.service", "medes-agent.service")


def unit_path(stage: Path, name: str) -> Path:
    return stage / "etc" / "systemd" / "system" / name


def test_systemd_takes_the_installed_units(stage: Path, tmp_path: Path) -> None:
    for name in UNITS:
        text = unit_path(stage, name).read_text()
        assert "ExecStart=/usr/local/bin/medes " in text
        (tmp_path / name).write_text(text.replace("=/usr/local/bin/", f"={stage}/usr/local/bin/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / name for name in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def service(stage: Path, name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The unit's process once it has told its manager that it is ready; SIGTERM ends it, within the unit's time."""
    unit = Unit(unit_path(stage, name))
    address = f"\0medes-test-{uuid.uuid4()}"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        (folder / f"{name}.log").open("wb") as log,
    ):
        manager.bind(address)
        manager.settimeout(60)
        process = subprocess.Popen(
            # The system's interpreter: the unit may hide the home that the tests' own lies in.
            ["/usr/bin/python3", "-m", "tests.support.unit_launcher", unit_path(stage, name), stage, folder],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": address.replace("\0", "@", 1)},
            stdout=log,
            stderr=log,
        )
        try:
            said = manager.recv(100) if wait_readable(manager, process) else b""
            assert said == b"READY=1", (folder / f"{name}.log").read_text()
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(int(unit.one("TimeoutStopSec"))) == 0, (folder / f"{name}.log").read_text()
        finally:
            process.kill()
            process.wait(10)


def wait_readable(manager: socket.socket, process: subprocess.Popen[bytes]) -> bool:
    """False when the process ended before it said anything."""
    while not select.select([manager], [], [], 0.2)[0]:
        if process.poll() is not None:
            return False
    return True


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def settings(stage: Path) -> Iterator[str]:
    """The installed settings on free ports, in place of them; the node's name."""
    file = stage / "etc" / "medes" / "medes.toml"
    installed, node = file.read_text(), f"unit-{uuid.uuid4().hex[:8]}"
    text = installed
    for port in ("9470", "9471"):
        text = text.replace(f":{port}", f":{free_port()}")
    text = text.replace("[agent]\n", f'[agent]\nnode_id = "{node}"\npeer_address = "127.0.0.1:0"\n')
    file.write_text(text)
    yield node
    file.write_text(installed)
    shared = Path(f"/dev/shm/medes-{node}")
    for left in shared.glob("*") if shared.is_dir() else ():
        left.unlink()
    if shared.is_dir():
        shared.rmdir()


@pytest.mark.live
def test_daemons_under_their_units_dedup_a_filtered_process(
    stage: Path, settings: str, tmp_path: Path, make_app: Callable[..., App]
) -> None:
    # The settings' file is root's alone, and /etc/medes/tls too: the controller has another user.
    assert (stage / "etc/medes/medes.toml").stat().st_mode & 0o777 == 0o600
    with (
        service(stage, "medes-controller.service", tmp_path) as controller,
        service(stage, "medes-agent.service", tmp_path) as agent,
        App(prefix=CONTAINED) as app,
        MedesClient(f"unix:{tmp_path}/run/medes/agent.sock") as medes,
        ControllerClient(f"unix:{tmp_path}/run/medes-controller/controller.sock") as cluster,
    ):
        assert status(controller.pid)["Uid"].split()[0] != "0"
        assert (status(controller.pid)["CapBnd"], status(controller.pid)["Seccomp"]) == ("0" * 16, "2")
        assert status(agent.pid)["Seccomp"] == "0"
        assert status(agent.pid)["NoNewPrivs"] == "1"
        assert (status(app.pid)["CapEff"], status(app.pid)["Seccomp"]) == ("0" * 16, "2")
        wait_until(lambda: medes.node().controller_connected, "the agent joined")
        assert [node.endpoints.node_id for node in cluster.nodes()] == [settings]
        sandbox = medes.register("unit", pids=[app.pid], lifecycle=LifecycleSettings(disabled=True))
        assert sandbox.driver == "live"
        report = medes.dedup(sandbox.sandbox_id).report
        assert report.gross_saved_bytes > report.warm_bytes // 2
        assert medes.get(sandbox.sandbox_id).state is SandboxState.DEDUP
        assert medes.restore(sandbox.sandbox_id).report.was_dedup
        app.ask()


@pytest.mark.live
def test_a_restart_under_the_unit_takes_sandboxes_back(stage: Path, settings: str, tmp_path: Path) -> None:
    with App(prefix=CONTAINED) as app:
        with (
            service(stage, "medes-agent.service", tmp_path),
            MedesClient(f"unix:{tmp_path}/run/medes/agent.sock") as medes,
        ):
            sandbox = medes.register("unit", pids=[app.pid], lifecycle=LifecycleSettings(disabled=True))
            medes.dedup(sandbox.sandbox_id)
        with (
            service(stage, "medes-agent.service", tmp_path),
            MedesClient(f"unix:{tmp_path}/run/medes/agent.sock") as medes,
        ):
            assert medes.get(sandbox.sandbox_id).state is SandboxState.DEDUP
            assert medes.restore(sandbox.sandbox_id).report.was_dedup
            app.ask()
