"""medes bench asleep: what unmodified programs hold and answer while they sleep dedup'd."""

from __future__ import annotations

from typing import Any

import click

from medes.cli.options import json_lines_option
from medes.cli.program_rows import tell

COLUMNS = {
    "program": "program",
    "run": "run",
    "round": "round",
    "warm_bytes": "MB",
    "saved_ratio_time_averaged": "saved",
    "asleep_ratio": "asleep",
    "faults_first_minute": "faults 1st min",
    "faults_per_hour_after": "per h after",
    "agent_cpu_ratio": "agent CPU",
    "probe_first_ms": "1st probe ms",
    "probe_ms_p50": "probe p50",
    "probe_ms_p99": "p99",
    "probe_warm_ms_p50": "warm p50",
    "verified": "verified",
}


@click.command("asleep")
@click.option("--program", "programs", multiple=True, metavar="NAME", help="This program; repeatable.")
@click.option(
    "--against",
    multiple=True,
    metavar="NAME",
    help="Also what others do, probed: nothing, ksm, zram (as root; swaps the machine meanwhile). Repeatable.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86400),
    default=60.0,
    show_default=True,
    help="Of a sleep, alone and probed.",
)
@click.option(
    "--probe-every",
    "probe_every_s",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    help="Seconds between probes that nobody reports.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Sleeps of each program and run; from the second on its tick set is known.",
)
@click.option(
    "--keys", type=click.IntRange(1, 50_000_000), default=300_000, show_default=True, help="Of redis."
)
@click.option(
    "--items",
    type=click.IntRange(1, 10_000_000),
    default=200_000,
    show_default=True,
    help="Of each process of the other servers; some 130 bytes each.",
)
@json_lines_option
def cli(as_json: bool, **asked: Any) -> None:
    """Let unmodified programs sleep dedup'd, alone and with probes. Their whole state is verified afterwards.

    Programs that are not installed are skipped, with a line that says so. --json prints one line per program, run and
    round.
    """
    from medes.bench.asleep import Options, run

    rows = run(Options(**asked), progress=lambda text: click.echo(text, err=True))
    tell(rows, as_json, COLUMNS, _cell)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "warm_bytes":
        return f"{value / 1e6:.1f}"
    if "ratio" in key:
        return f"{value:.2%}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
