"""What the metadata promises: the oldest and the newest admitted version of every dependency run the service."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medes.types import SandboxState
from tests.support.cluster import AgentProcess, wait_until
from tests.support.controller_process import ControllerProcess
from tests.support.counter_app import App
from tests.support.redis_server import redis_server


def oldest(*wheels: Path) -> list[str]:
    """Constraints: each dependency of the wheels at its lowest version."""
    found = []
    for wheel in wheels:
        archive = zipfile.ZipFile(wheel)
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        for line in archive.read(name).decode().splitlines():
            match = re.fullmatch(
                r"Requires-Dist: ([\w-]+)\S*?>=([\d.]+)\S*( ?; extra == .redis.)?", line.replace('"', "'")
            )
            if match:
                found.append(f"{match[1]}=={match[2]}")
    return found


@pytest.mark.live
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_the_admitted_versions_run(
    which: str,
    wheels: tuple[Path, Path],
    make_venv: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    constraints = tmp_path / "constraints.txt"
    pins = oldest(*wheels) if which == "oldest" else []
    assert which == "newest" or {"grpcio", "protobuf", "click", "redis"} <= {
        p.partition("==")[0] for p in pins
    }
    constraints.write_text("\n".join(pins))
    python = make_venv("-c", str(constraints), str(wheels[0]), f"{wheels[1]}[redis]")
    subprocess.run([python, "-m", "pip", "check"], check=True)
    installed = subprocess.check_output([python, "-m", "pip", "freeze"], text=True).lower().replace("_", "-")
    for pin in pins:
        assert re.search(rf"^{re.escape(pin)}(\.0)*$", installed, re.MULTILINE), (pin, installed)

    # The working directory is the checkout, whose medes must not be found.
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with redis_server(tmp_path) as url, App() as app:
        controller = ControllerProcess("--store", url, python=str(python))
        agent = AgentProcess(tmp_path, "n0", controller.address)
        agent.python = str(python)

        def medes(*arguments: str) -> str:
            command = [python, "-W", "error::UserWarning:medes", "-m", "medes", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            return done.stdout

        try:
            agent.start()
            monkeypatch.setenv("MEDES_AGENT", agent.address)
            with agent.client() as client:
                wait_until(lambda: client.node().controller_connected, "the agent joined")
                sandbox = medes("sandbox", "register", "old", "--pid", str(app.pid), "--no-timers").strip()
                medes("sandbox", "dedup", sandbox)
                assert client.get(sandbox).state is SandboxState.DEDUP
                assert sandbox in medes("sandbox", "ls")
                assert '"nodes"' in medes("top", "--json", "--controller", controller.address)
                medes("sandbox", "restore", sandbox)
                wait_until(lambda: client.get(sandbox).state is SandboxState.WARM, "the last page is in")
            app.ask()
        finally:
            agent.clean()
            controller.end()
