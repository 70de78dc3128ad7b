"""medes bench connections: connections held open through cycles of dedup and use."""

from __future__ import annotations

from typing import Any

import click

from medes.cli.options import json_lines_option
from medes.cli.program_rows import tell

COLUMNS = {
    "program": "program",
    "cycles": "cycles",
    "woken": "woken",
    "busy": "busy",
    "kept_ratio_p50": "kept",
    "dedup_ms_p50": "dedup ms",
    "use_asleep_ms_p50": "use asleep p50",
    "use_asleep_ms_p99": "p99",
    "use_awake_ms_p50": "awake p50",
    "use_awake_ms_p99": "p99",
    "verified": "verified",
}


@click.command("connections")
@click.option("--program", "programs", multiple=True, metavar="NAME", help="This program; repeatable.")
@click.option("--cycles", type=click.IntRange(1, 1_000_000), default=1000, show_default=True)
@click.option(
    "--keys", type=click.IntRange(1, 50_000_000), default=50_000, show_default=True, help="Of redis."
)
@click.option(
    "--items",
    type=click.IntRange(1, 10_000_000),
    default=50_000,
    show_default=True,
    help="Of each process of the other programs; some 130 bytes each.",
)
@json_lines_option
def cli(as_json: bool, **asked: Any) -> None:
    """Dedup, use, restore and use programs over a connection that stays open: redis, HTTP kept alive, WebSocket, PostgreSQL, a
    terminal.

    Programs that are not installed are skipped, with a line that says so. --json prints one line per program.
    """
    from medes.bench.connections import Options, run

    rows = run(Options(**asked), progress=lambda text: click.echo(text, err=True))
    tell(rows, as_json, COLUMNS, _cell)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if "ratio" in key:
        return f"{value:.1%}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
