"""Files in deploy/ agree with the code: metrics of the dashboard, settings of the units, images and manifests."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from medes.config import AgentSettings, ControllerSettings, load
from tests.support.docs_rows import metric_series
from tests.support.unit_file import FILTERS, Unit

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


def unit(name: str) -> Unit:
    return Unit(DEPLOY / "systemd" / name)


def test_stopping_the_agent_stops_nothing_else() -> None:
    agent, controller = unit("medes-agent.service"), unit("medes-controller.service")
    assert agent.one("KillMode") == "process"
    assert agent.one("RuntimeDirectoryPreserve") == "yes"
    assert agent.one("TimeoutStartSec") == "infinity"
    assert "CAP_SYS_PTRACE" in agent.words("CapabilityBoundingSet")
    assert controller.service["CapabilityBoundingSet"] == [""]
    for daemon in (agent, controller):
        assert (daemon.one("Type"), daemon.one("Restart")) == ("notify", "always")


def test_no_directive_of_the_agents_unit_installs_a_seccomp_filter() -> None:
    """The kernel lets only a tracer without one suspend a sandbox's."""
    assert FILTERS & set(unit("medes-controller.service").service) >= {"SystemCallFilter", "DynamicUser"}
    assert FILTERS & set(unit("medes-agent.service").service) == set()


def test_the_controller_reads_what_only_root_may() -> None:
    controller = unit("medes-controller.service")
    given = dict(value.split(":") for value in controller.service["LoadCredential"])
    assert given == {"medes.toml": "/etc/medes/medes.toml", "tls": "/etc/medes/tls"}
    assert controller.one("ExecStart").endswith(" controller --config %d/medes.toml")


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
