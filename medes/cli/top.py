"""medes top: nodes, memory and sandboxes of the cluster, refreshed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from medes.cli.format import build_table, maybe_bytes_text, wide_console
from medes.cli.options import controller_option, json_option, print_json, tls_from
from medes.client import ControllerClient
from medes.errors import ControllerUnreachableError
from medes.types import FunctionUsage, NodeRecord, SandboxRecord, Statistics
from medes.units import bytes_text, duration_text

SUMMED = [field.name for field in dataclasses.fields(FunctionUsage) if field.name.endswith("_bytes")]


@click.command()
@click.option(
    "--interval-s", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Between refreshes."
)
@click.option("--once", is_flag=True, help="Print once and end.")
@json_option
@controller_option
def cli(address: str, interval_s: float, once: bool, as_json: bool, **options: Any) -> None:
    """Watch the cluster: nodes, memory, sandboxes. With --json: one document, then the end."""
    tls = tls_from(options)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ControllerClient(a.strip(), tls=tls)) for a in address.split(",")]
        if as_json:
            nodes, sandboxes, statistics = _ask(clients)
            document = {"functions": summarize(sandboxes, nodes), "tenants": by_tenant(nodes)}
            print_json({"nodes": nodes, **document, "controller": statistics})
            return
        if once:
            wide_console().print(_screen(*_ask(clients)))
            return
        with Live(_screen(*_ask(clients)), auto_refresh=False, screen=wide_console().is_terminal) as live:
            while True:
                time.sleep(interval_s)
                try:
                    live.update(_screen(*_ask(clients)), refresh=True)
                except ControllerUnreachableError as error:
                    # A controller restart takes a moment; the screen should outlast it.
                    live.update(Text(f"waiting for the controller: {error}"), refresh=True)


def _ask(clients: list[ControllerClient]) -> tuple[list[NodeRecord], list[SandboxRecord], Statistics]:
    """What the first controller that answers says."""
    errors = []
    for client in clients:
        try:
            return client.nodes(), client.sandboxes(), client.statistics()
        except ControllerUnreachableError as error:
            errors.append(error)
    raise ControllerUnreachableError(
        "; ".join(error.message for error in errors), object=", ".join(error.object for error in errors)
    )


def summarize(sandboxes: list[SandboxRecord], nodes: list[NodeRecord]) -> list[dict[str, Any]]:
    """Per function: sandboxes by state from the directory, memory from what the live nodes say.

    warm and kept, and of kept present, tick and touched, are of the dedup'd ones; saved_ratio (null without any) is over
    their warm memory and net: a share of base pages is off. Means over time are null where a node tells none.
    """
    functions: dict[str, dict[str, Any]] = {}
    for record in sandboxes:
        row = functions.setdefault(record.function, _row(function=record.function))
        row["sandboxes"] += 1
        row["bases"] += record.is_base
        row["states"][record.state.label] = row["states"].get(record.state.label, 0) + 1
    for usage in _usages(nodes):
        _add(functions.setdefault(usage.function, _row(function=usage.function)), usage)
    return [_with_ratio(functions[name]) for name in sorted(functions)]


def by_tenant(nodes: list[NodeRecord]) -> list[dict[str, Any]]:
    """Memory per tenant, as `summarize` has it per function."""
    tenants: dict[str, dict[str, Any]] = {}
    for usage in _usages(nodes):
        row = tenants.setdefault(usage.tenant, _memory(tenant=usage.tenant, sandboxes=0))
        row["sandboxes"] += usage.sandboxes
        _add(row, usage)
    return [_with_ratio(tenants[name]) for name in sorted(tenants)]


def _usages(nodes: list[NodeRecord]) -> list[FunctionUsage]:
    return [usage for node in nodes if node.alive for usage in node.functions]


def _memory(**first: Any) -> dict[str, Any]:
    return {**first, **dict.fromkeys(SUMMED, 0)}


def _row(**first: Any) -> dict[str, Any]:
    return _memory(**first, sandboxes=0, states={}, bases=0)


def _add(row: dict[str, Any], usage: FunctionUsage) -> None:
    for name in SUMMED:
        added = getattr(usage, name)
        row[name] = None if added is None or row[name] is None else row[name] + added


def _with_ratio(row: dict[str, Any]) -> dict[str, Any]:
    row["saved_ratio"] = row["saved_bytes"] / row["warm_bytes"] if row["warm_bytes"] else None
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    ratio = "" if row["saved_ratio"] is None else f" ({row['saved_ratio']:.1%})"
    names = ("warm_bytes", "kept_bytes", "touched_bytes", "base_share_bytes")
    saved = bytes_text(row["saved_bytes"]) + ratio
    return [*(bytes_text(row[name]) for name in names), saved, maybe_bytes_text(row["recent_saved_bytes"])]


def _screen(nodes: list[NodeRecord], sandboxes: list[SandboxRecord], statistics: Statistics) -> Group:
    node_rows = [
        [
            n.endpoints.node_id,
            "alive" if n.alive else f"silent for {duration_text(n.last_heartbeat_age_ms / 1000)}",
            bytes_text(n.usage.memory_bytes),
            bytes_text(n.usage.warm_bytes),
            bytes_text(n.usage.kept_bytes),
            bytes_text(n.usage.touched_bytes),
            bytes_text(n.usage.base_bytes),
            bytes_text(n.usage.saved_bytes),
            maybe_bytes_text(n.usage.recent_saved_bytes),
            f"{n.usage.sandboxes_running}/{n.usage.sandboxes_warm}/{n.usage.sandboxes_dedup}",
            ",".join(n.endpoints.transports),
        ]
        for n in nodes
    ]
    function_rows = [
        [
            row["function"],
            str(row["sandboxes"]),
            " ".join(f"{state}:{count}" for state, count in sorted(row["states"].items())),
            str(row["bases"]),
            *_cells(row),
        ]
        for row in summarize(sandboxes, nodes)
    ]
    tenant_rows = [[row["tenant"], str(row["sandboxes"]), *_cells(row)] for row in by_tenant(nodes)]
    line = (
        f"registry: {statistics.bases} bases, {statistics.base_pages} pages, {statistics.registry_hashes} hashes, "
        f"{bytes_text(statistics.registry_bytes)}; {statistics.lookups} lookups of {statistics.lookup_pages} pages, "
        f"p50 {duration_text(statistics.lookup_us_p50 / 1e6)}, p99 {duration_text(statistics.lookup_us_p99 / 1e6)}"
    )
    memory = ["warm (dedup'd)", "kept", "touched", "base share", "saved", "saved 10 min"]
    return Group(
        build_table(
            [
                "node",
                "state",
                "memory",
                "warm",
                "kept",
                "touched",
                "base",
                "saved",
                "saved 10 min",
                "run/warm/dedup",
                "transports",
            ],
            node_rows,
        ),
        Text(),
        build_table(["function", "sandboxes", "states", "bases", *memory], function_rows),
        Text(),
        build_table(["tenant", "sandboxes", *memory], tenant_rows),
        Text(),
        Text(line),
    )
