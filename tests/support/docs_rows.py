"""The rows of tables in docs/, made from the code."""

from __future__ import annotations

import dataclasses
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from medes import errors
from medes.cli.demo import EXIT_NOT_VERIFIED
from medes.cli.main import EXIT_INTERRUPTED
from medes.obs.agent_metrics import AgentMetrics
from medes.obs.controller_metrics import ControllerMetrics
from medes.obs.rpc_metrics import RpcMetrics
from medes.types import SandboxState, Statistics


def _catalogue() -> list[type[errors.MedesError]]:
    return sorted(errors.BY_CODE.values(), key=lambda e: e.exit_code)


def error_rows() -> list[str]:
    return [
        f"| `{e.code}` | `{e.grpc_status}` | {'yes' if e.transient else 'no'} | {(e.__doc__ or '').strip()} |"
        for e in _catalogue()
    ]


def exit_rows() -> list[str]:
    """Those of all commands."""
    known = [f"| {e.exit_code} | `{e.code}` | {(e.__doc__ or '').strip()} |" for e in _catalogue()]
    first = [
        "| 0 | | done |",
        f"| {EXIT_NOT_VERIFIED} | | `medes demo` only: it ran, and a state could not be verified |",
    ]
    return [*first, *known, f"| {EXIT_INTERRUPTED} | | interrupted |"]


def _default_text(value: Any, name: str) -> str:
    if name == "listen_mode":
        return f"`0o{value:o}`"
    if name.endswith("_bytes") and value and value % (1 << 30) == 0:
        return f"`{value >> 30}GiB`"
    if name.endswith("_bytes") and value and value % (1 << 20) == 0:
        return f"`{value >> 20}MiB`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"`{value}`" if value not in ("", None) else ""


def setting_rows(cls: type) -> list[str]:
    return [
        f"| `{f.name}` | {_default_text(f.default, f.name)} | {f.metadata['help']} |"
        for f in dataclasses.fields(cls)
        if f.name != "tls" and "table" not in f.metadata
    ]


def override_rows(table: type) -> list[str]:
    return [f"| `{f.name}` | {f.metadata['help']} |" for f in dataclasses.fields(table)]


def _labels(registry: CollectorRegistry) -> dict[str, tuple[str, ...]]:
    """Metric → label names, which a metric without samples shows nowhere else."""
    return {c._name: c._labelnames for c in registry._collector_to_names if isinstance(c, MetricWrapperBase)}


def _rows(registry: CollectorRegistry) -> list[str]:
    known = _labels(registry)
    rows = []
    for metric in registry.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        shown = ", ".join(
            known.get(metric.name)
            or getattr(metric, "_labelnames", ())
            or {label for s in metric.samples for label in s.labels} - {"le"}
        )
        rows.append(f"| `{name}` | {metric.type} | {shown} | {metric.documentation} |")
    return rows


def _registries() -> tuple[CollectorRegistry, CollectorRegistry, CollectorRegistry]:
    both, controller, agent = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    RpcMetrics(both)
    ControllerMetrics(controller, Statistics, lambda: {SandboxState.WARM: 1}, lambda: {"warm": 1})
    AgentMetrics(agent)
    return both, controller, agent


def metric_rows() -> tuple[list[str], list[str], list[str]]:
    """Rows for what both processes have, the controller's and the agent's."""
    both, controller, agent = _registries()
    return _rows(both), _rows(controller), _rows(agent)


def metric_series() -> set[str]:
    """Every series name a scrape can show."""
    names: set[str] = set()
    for registry in _registries():
        for metric in registry.collect():
            if metric.type == "counter":
                names.add(metric.name + "_total")
            elif metric.type == "histogram":
                names |= {metric.name + suffix for suffix in ("_bucket", "_sum", "_count")}
            else:
                names.add(metric.name)
    return names
