"""What deploy/README.md tells an operator to type: certificates that daemons take, and a node that is drained."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from medes.config import AgentSettings, ControllerSettings, load
from medes.errors import InvalidArgumentError
from medes.rpc.tls import TlsFiles
from medes.types import LifecycleSettings
from tests.support.cluster import Cluster
from tests.support.counter_app import App
from tests.support.docs_blocks import code_blocks


def test_the_readmes_certificates_join_a_cluster(
    tmp_path: Path, make_cluster: Callable[..., Cluster]
) -> None:
    (block,) = (b for b in code_blocks("deploy/README.md", "sh", "Certificates") if "certs init" in b)
    bin_ = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"}
    subprocess.run(
        ["bash", "-ec", block.replace("node-b", "n0")], env=environment, cwd=tmp_path, check=True, timeout=120
    )
    out = tmp_path / "pki" / "out"
    assert {p.name for p in out.glob("*.key") if p.stat().st_mode & 0o777 != 0o600} == set()

    def files(name: str) -> dict[str, str]:
        made = {"tls_certificate": f"{name}.crt", "tls_private_key": f"{name}.key", "tls_ca": "ca.crt"}
        return {option: str(out / file) for option, file in made.items()}

    flags = tuple(f"--{k.replace('_', '-')}={v}" for k, v in files("controller").items())
    cluster = make_cluster(nodes=1, controller_flags=flags, **files("n0"))
    operator = TlsFiles(*files("operator").values())
    with cluster.controller_client(operator) as client:
        assert [n.endpoints.node_id for n in client.nodes() if n.alive] == ["n0"]


def test_the_readmes_settings_load(tmp_path: Path) -> None:
    (text,) = code_blocks("deploy/README.md", "toml", "Certificates")
    file = tmp_path / "medes.toml"
    file.write_text(text)
    assert load(AgentSettings, file, {}).tls.enabled
    controller = load(ControllerSettings, file, {})
    # Where systemd puts what the unit's LoadCredential= names.
    assert Path(controller.tls.private_key).name.removeprefix("tls_") == "controller.key"
    assert set(tomllib.loads(text)) == {"agent", "controller"}
    file.write_text(text.replace("private_key", "private_kee"))
    with pytest.raises(InvalidArgumentError):
        load(AgentSettings, file, {})


@pytest.mark.live
def test_drained_by_the_readmes_commands(
    make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    (block,) = code_blocks("deploy/README.md", "sh", "Drain a node")
    agent = make_cluster(nodes=1, controller=False).agents[0]
    apps = [make_app(), make_app()]
    with agent.client() as client:
        ids = [
            client.register("f", pids=[app.pid], lifecycle=LifecycleSettings(disabled=True)).sandbox_id
            for app in apps
        ]
        client.dedup(ids[0])
        bin_ = Path(sys.executable).parent
        environment = {**os.environ, "MEDES_AGENT": agent.address, "PATH": f"{bin_}:{os.environ['PATH']}"}
        for _ in range(2):  # the second time there is nothing left
            done = subprocess.run(
                ["bash", "-ec", block], env=environment, capture_output=True, text=True, timeout=120
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert client.list() == []
    assert agent.shm_files("sandbox-") == []
    for app in apps:
        app.ask()
