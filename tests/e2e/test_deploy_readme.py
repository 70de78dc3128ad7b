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
from tests.support.docs_blocks import ROOT, code_blocks

SCRIPT = ROOT / "deploy" / "certificates.sh"


def certificates(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def made_for(folder: Path, *nodes: str) -> None:
    assert certificates("ca", folder).returncode == 0
    for node in nodes:
        assert certificates("node", folder, node, "127.0.0.1", "localhost").returncode == 0


def files(folder: Path, node: str) -> TlsFiles:
    return TlsFiles(str(folder / f"{node}.crt"), str(folder / f"{node}.key"), str(folder / "ca.crt"))


def test_the_scripts_certificates_join_a_cluster(
    tmp_path: Path, make_cluster: Callable[..., Cluster], make_app: Callable[..., App]
) -> None:
    pki = tmp_path / "pki"
    made_for(pki, "controller", "n0")
    assert {p.name for p in pki.glob("*.key") if p.stat().st_mode & 0o777 != 0o600} == set()
    flags = ("--node-certificates", f"--tls-certificate={pki}/controller.crt")
    flags += (f"--tls-private-key={pki}/controller.key", f"--tls-ca={pki}/ca.crt")
    own = files(pki, "n0")
    cluster = make_cluster(
        nodes=1,
        controller_flags=flags,
        tls_certificate=own.certificate,
        tls_private_key=own.private_key,
        tls_ca=own.ca,
    )
    with cluster.controller_client(own) as client:
        assert [n.endpoints.node_id for n in client.nodes() if n.alive] == ["n0"]


def test_a_second_authority_does_not_replace_the_first(tmp_path: Path) -> None:
    made_for(tmp_path)
    again = certificates("ca", tmp_path)
    assert again.returncode == 1 and "exists" in again.stderr
    bad = certificates("node", tmp_path, "a/../b")
    assert bad.returncode == 1 and "letters" in bad.stderr


def test_the_readmes_settings_load(tmp_path: Path) -> None:
    (text,) = code_blocks("deploy/README.md", "toml", "Certificates")
    file = tmp_path / "medes.toml"
    file.write_text(text)
    assert load(AgentSettings, file, {}).node_certificates
    controller = load(ControllerSettings, file, {})
    # Where systemd puts what the unit's LoadCredential= names.
    assert Path(controller.tls.private_key).name.removeprefix("tls_") == "controller.key"
    assert set(tomllib.loads(text)) == {"agent", "controller"}
    file.write_text(text.replace("node_certificates", "node_certificate"))
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
