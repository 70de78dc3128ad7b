"""Files in deploy/ agree with the code: metrics of the dashboard, settings of the units, images and manifests."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from medes import __version__
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
    text = "\n".join(
        line for line in (DEPLOY / name).read_text().splitlines() if not line.lstrip().startswith("#")
    )
    known = {f.name for cls in (AgentSettings, ControllerSettings) for f in dataclasses.fields(cls)}
    known |= {"tls_certificate", "tls_private_key", "tls_ca"}
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", text)}
    assert len(flags) > 3
    assert flags - known == set()
    agent = {f"MEDES_AGENT_{f.name.upper()}" for f in dataclasses.fields(AgentSettings)}
    assert set(re.findall(r"MEDES_\w+", text)) - agent == set()
    for needed in ("/dev/shm", "/var/lib/medes"):
        assert needed in text


def capabilities() -> set[str]:
    return {name.removeprefix("CAP_") for name in unit("medes-agent.service").words("CapabilityBoundingSet")}


def test_compose_gives_the_agent_what_the_unit_gives() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    agent, controller = services["agent"], services["controller"]
    assert set(agent["cap_add"]) == capabilities()
    assert {"seccomp=unconfined", "apparmor=unconfined"} <= set(agent["security_opt"])
    assert "/dev/userfaultfd:/dev/userfaultfd" in agent["devices"]
    assert (agent["pid"], agent["network_mode"]) == ("host", "host")
    mounted = {volume.partition(":")[2] for volume in agent["volumes"]}
    assert {"/dev/shm", "/var/lib/medes", "/run/medes"} <= mounted
    assert controller["cap_drop"] == ["ALL"] and "cap_add" not in controller
    assert agent["image"] == controller["image"] == f"localhost/medes:{__version__}"


def manifests() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "medes.yaml").read_text())
    return {f"{d['kind']}/{d['metadata']['name']}": d for d in documents}


# appArmorProfile came with 1.30; the newest schema that is known here as well.
@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_kubernetes_takes_the_manifests(version: str) -> None:
    for document in manifests().values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_daemon_set_gives_the_agent_what_the_unit_gives() -> None:
    pod = manifests()["DaemonSet/agent"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    context = container["securityContext"]
    # Privileged for one device; who avoids that finds the unit's capabilities in the comment.
    text = (DEPLOY / "kubernetes" / "medes.yaml").read_text().replace("#", " ")
    assert context["privileged"] and ", ".join(sorted(capabilities())) == ", ".join(
        sorted(
            re.findall(
                r"[A-Z_]{4,}", text.partition("capabilities do instead:")[2].partition("privileged")[0]
            )
        )
    )
    assert context["seccompProfile"] == context["appArmorProfile"] == {"type": "Unconfined"}
    beta = f"container.apparmor.security.beta.kubernetes.io/{container['name']}"
    assert pod["metadata"]["annotations"][beta] == "unconfined"
    assert pod["spec"]["hostPID"] and pod["spec"]["hostNetwork"]
    sources = {v["name"]: v.get("hostPath", {}).get("path") for v in pod["spec"]["volumes"]}
    mounted = {m["mountPath"]: sources[m["name"]] for m in container["volumeMounts"]}
    # Each node's own, certificate included: one for all would fail host name checks, or speak for every node.
    assert mounted == {
        "/tls": "/etc/medes/tls",
        **{path: path for path in ("/dev/shm", "/var/lib/medes", "/run/medes", "/sys/fs/cgroup")},
    }


def test_no_manifest_names_an_image_that_somebody_else_might_own() -> None:
    for name in ("DaemonSet/agent", "Deployment/controller"):
        (container,) = manifests()[name]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"registry.invalid/medes:{__version__}"  # RFC 2606: never resolves


def test_alerts_use_real_metrics_and_are_explained() -> None:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    rules = group["rules"]
    used = {name for rule in rules for name in re.findall(r"medes_\w+", rule["expr"])}
    assert used - metric_series() == set()
    assert "medes_agent_sandboxes_lost_total" in used
    explained = re.findall(r"^\| `(Medes\w+)` \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert explained == [rule["alert"] for rule in rules]
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["expr"].count("(") == rule["expr"].count(")")
        # What a summary shows must be a label that the expression keeps.
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
        assert shown <= (kept or {"instance"})


def test_the_build_context_has_sources_only() -> None:
    """`COPY . .` would take the virtual environment, results and history along."""
    lines = [
        line
        for line in (DEPLOY.parent / ".dockerignore").read_text().splitlines()
        if line[:1] not in ("#", "")
    ]
    admitted = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*" and not admitted & {".venv", ".git", "build", "tests"}
    assert {
        "LICENSE",
        "Makefile",
        "README.md",
        "deploy",
        "medes",
        "native",
        "proto",
        "pyproject.toml",
    } == admitted
