"""medes top: nodes, memory and sandboxes of the cluster, refreshed."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from medes.cli.format import build_table, bytes_text, duration_text, wide_console
from medes.cli.options import controller_option, json_option, print_json, tls_from
from medes.client import ControllerClient
from medes.errors import ControllerUnreachableError
from medes.types import NodeRecord, SandboxRecord, SandboxState, Statistics


@click.command()
@click.option(
    "--interval-s", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Between refreshes."
)
@click.option("--once", is_flag=True, help="Print once and end.")
@json_option
@controller_option
def cli(address: str, interval_s: float, once: bool, as_json: bool, **options: Any) -> None:
    """Watch the cluster: nodes, memory, sandboxes. With --json: one document, then the end."""
    with ControllerClient(address, tls=tls_from(options)) as client:
        if as_json:
            nodes, sandboxes, statistics = _ask(client)
            print_json({"nodes": nodes, "functions": summarize(sandboxes), "controller": statistics})
            return
        if once:
            wide_console().print(_screen(*_ask(client)))
            return
        with Live(_screen(*_ask(client)), auto_refresh=False, screen=wide_console().is_terminal) as live:
            while True:
                time.sleep(interval_s)
                try:
                    live.update(_screen(*_ask(client)), refresh=True)
                except ControllerUnreachableError as error:
                    # A controller restart takes a moment; the screen should outlast it.
                    live.update(Text(f"waiting for the controller: {error}"), refresh=True)


def _ask(client: ControllerClient) -> tuple[list[NodeRecord], list[SandboxRecord], Statistics]:
    return client.nodes(), client.sandboxes(), client.statistics()


def summarize(sandboxes: list[SandboxRecord]) -> list[dict[str, Any]]:
    """Per function: sandboxes by state and memory; saved_ratio is over the dedup'd ones (null without any)."""
    functions: dict[str, dict[str, Any]] = {}
    for record in sandboxes:
        row = functions.setdefault(
            record.function,
            {
                "function": record.function,
                "sandboxes": 0,
                "states": {},
                "bases": 0,
                "warm_bytes": 0,
                "kept_bytes": 0,
            },
        )
        row["sandboxes"] += 1
        row["bases"] += record.is_base
        row["states"][record.state.label] = row["states"].get(record.state.label, 0) + 1
        if record.state is SandboxState.DEDUP:
            row["warm_bytes"] += record.warm_bytes
            row["kept_bytes"] += record.kept_bytes
    for row in functions.values():
        row["saved_ratio"] = 1 - row["kept_bytes"] / row["warm_bytes"] if row["warm_bytes"] else None
    return [functions[name] for name in sorted(functions)]


def _screen(nodes: list[NodeRecord], sandboxes: list[SandboxRecord], statistics: Statistics) -> Group:
    node_rows = [
        [
            n.endpoints.node_id,
            "alive" if n.alive else f"silent for {duration_text(n.last_heartbeat_age_ms / 1000)}",
            bytes_text(n.usage.memory_bytes),
            bytes_text(n.usage.warm_bytes),
            bytes_text(n.usage.kept_bytes),
            bytes_text(n.usage.base_bytes),
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
            bytes_text(row["warm_bytes"]),
            bytes_text(row["kept_bytes"]),
            "" if row["saved_ratio"] is None else f"{row['saved_ratio']:.1%}",
        ]
        for row in summarize(sandboxes)
    ]
    line = (
        f"registry: {statistics.bases} bases, {statistics.base_pages} pages, {statistics.registry_hashes} hashes, "
        f"{bytes_text(statistics.registry_bytes)}; {statistics.lookups} lookups of {statistics.lookup_pages} pages, "
        f"p50 {duration_text(statistics.lookup_us_p50 / 1e6)}, p99 {duration_text(statistics.lookup_us_p99 / 1e6)}"
    )
    return Group(
        build_table(
            ["node", "state", "memory", "warm", "kept", "base", "run/warm/dedup", "transports"], node_rows
        ),
        Text(),
        build_table(
            ["function", "sandboxes", "states", "bases", "warm (dedup'd)", "kept", "saved"], function_rows
        ),
        Text(),
        Text(line),
    )
