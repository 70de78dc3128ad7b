"""Files in deploy/ agree with the code: metrics of the dashboard, settings of the units, images and manifests."""

from __future__ import annotations

import configparser
import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from medes.config import AgentSettings, ControllerSettings, load
from tests.support.docs_rows import metric_series

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_the_dashboard_uses_real_metrics_and_misses_none() -> None:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    expressions = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    used = {name for e in expressions for name in re.findall(r"medes_\w+", e)}
    assert used - metric_series() == set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) > 10
    # What an operator must not miss.
    assert "medes_agent_sandboxes_lost_total" in used
    assert "medes_agent_restore_ready_seconds_bucket" in used


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOY / "systemd" / name).read_text())
    return parser


def test_stopping_the_agent_stops_nothing_else() -> None:
    agent, controller = unit("medes-agent.service"), unit("medes-controller.service")
    assert agent["Service"]["KillMode"] == "process"
    assert agent["Service"]["RuntimeDirectoryPreserve"] == "yes"
    assert "CAP_SYS_PTRACE" in agent["Service"]["CapabilityBoundingSet"].split()
    assert controller["Service"]["CapabilityBoundingSet"] == ""
    for daemon in (agent, controller):
        assert (daemon["Service"]["Type"], daemon["Service"]["Restart"]) == ("notify", "always")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["medes-agent.service", "medes-controller.service"])
def test_systemd_takes_the_units(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(DEPLOY / "systemd" / name)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert name not in done.stderr, done.stderr


def test_the_settings_file_loads() -> None:
    file = DEPLOY / "medes.toml"
    assert load(AgentSettings, file, {}).listen == "unix:/run/medes/agent.sock"
    assert load(ControllerSettings, file, {}).metrics_address == "127.0.0.1:9470"


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes/medes.yaml"])
def test_flags_and_variables_of_the_manifests_exist(name: str) -> None:
    text = (DEPLOY / name).read_text()
    known = {f.name for cls in (AgentSettings, ControllerSettings) for f in dataclasses.fields(cls)}
    known |= {"tls_certificate", "tls_private_key", "tls_ca"}
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", text)}
    assert len(flags) > 3
    assert flags - known == set()
    agent = {f"MEDES_AGENT_{f.name.upper()}" for f in dataclasses.fields(AgentSettings)}
    assert set(re.findall(r"MEDES_\w+", text)) - agent == set()
    for needed in ("/dev/shm", "/var/lib/medes", "SYS_PTRACE"):
        assert needed in text
