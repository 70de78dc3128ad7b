"""medes bench restore: first response, completion and storms, beside warm, cold, CRIU and zram."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click

from medes.cli.format import table
from medes.cli.options import json_lines_option

COLUMNS = {
    "function": "function",
    "private_bytes": "MB",
    "cold_start_ms_p50": "cold ms",
    "warm_ms_p50": "warm ms",
    "first_response_ms_p50": "first p50",
    "first_response_ms_p99": "p99",
    "first_response_no_prefetch_ms_p50": "no prefetch",
    "complete_ms_p50": "complete",
    "eager_complete_ms_p50": "eager",
    "first_response_added_over_eager": "added/eager",
    "pages_prefetched": "prefetched",
    "faults_demand": "faults",
    "faults_zero": "zero faults",
    "restored_throughput_ratio": "restored/untouched",
    "criu_first_response_ms_p50": "CRIU ms",
    "zram_first_response_ms_p50": "zram ms",
}


REMOTE_COLUMNS = {
    "function": "function",
    "case": "bases",
    "warm_ms_p50": "warm ms",
    "added_first_ms": "1st restore adds",
    "added_ms_settled_p50": "from the 3rd, p50",
    "added_ms_settled_p99": "p99",
    "ready_ms_p50": "ready",
    "complete_ms_p50": "complete",
    "pages_prefetched": "prefetched",
    "faults_demand": "faults",
}


@click.command("restore")
@click.option(
    "--functions",
    "directory",
    type=click.Path(path_type=Path),
    help="Folder of functions to use instead of the project's ten.",
)
@click.option("--only", multiple=True, metavar="NAME", help="This function; repeatable.")
@click.option(
    "--rounds", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Restores per function."
)
@click.option(
    "--pairs",
    type=click.IntRange(1, 50),
    default=3,
    show_default=True,
    help="Pairs of a restored and an untouched instance whose throughput is compared.",
)
@click.option(
    "--storm",
    type=click.IntRange(0, 1000),
    default=32,
    show_default=True,
    help="Sandboxes at once; 0: no storm.",
)
@click.option("--transport", type=click.Choice(["auto", "tcp", "rdma"]), default="auto", show_default=True)
@click.option(
    "--baselines/--no-baselines", default=True, show_default=True, help="CRIU and zram in the same run."
)
@click.option(
    "--set-up-zram",
    is_flag=True,
    help="Swap to a zram device made for it while the zram baseline runs (as root).",
)
@click.option(
    "--remote",
    is_flag=True,
    help="Instead: restores with bases here, on another node, and on another node with pages of them kept here.",
)
@json_lines_option
def cli(
    directory: Path | None,
    only: tuple[str, ...],
    rounds: int,
    pairs: int,
    storm: int,
    transport: str,
    baselines: bool,
    set_up_zram: bool,
    remote: bool,
    as_json: bool,
) -> None:
    """Time restores of real functions on one node, and a storm of them. Answers are verified.

    --json prints one line per function and one for the storm.
    """
    from medes.bench import restore, restore_remote
    from medes.bench.workloads import select

    specs = select(directory, only)
    if remote:
        remote_rows = restore_remote.run(specs, rounds, transport, progress=_progress)
        _print_remote(asyncio.run(_collect(remote_rows, as_json)), as_json)
        return
    options = restore.Options(
        rounds, pairs, storm, transport, with_baselines=baselines, set_up_zram=set_up_zram
    )
    rows = asyncio.run(_collect(restore.run(specs, options, progress=_progress), as_json))
    if as_json:
        return
    functions = [row for row in rows if row["benchmark"] == "restore"]
    table(list(COLUMNS.values()), [[_cell(key, row) for key in COLUMNS] for row in functions])
    for row in rows:
        if row["benchmark"] == "restore_storm":
            click.echo(
                f"storm of {row['sandboxes']}: first response p50 {row['first_response_ms_p50']} ms, "
                f"p99 {row['first_response_ms_p99']} ms; complete after {row['complete_ms']} ms, "
                f"{row['complete_over_work_per_core']} times its CPU time over the cores"
            )
    for key in ("criu_skipped", "zram_skipped"):
        for reason in sorted({row[key] for row in rows if key in row}):
            click.echo(f"{key.removesuffix('_skipped')} skipped: {reason}")


async def _collect(rows: AsyncIterator[dict[str, Any]], as_json: bool) -> list[dict[str, Any]]:
    collected = []
    async for row in rows:
        collected.append(row)
        if as_json:
            click.echo(json.dumps(row))
    return collected


def _progress(text: str) -> None:
    click.echo(text, err=True)


def _print_remote(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        return
    for row in rows:
        row["added_first_ms"] = row["added_ms"][0]
    table(list(REMOTE_COLUMNS.values()), [[_cell(key, row) for key in REMOTE_COLUMNS] for row in rows])


def _cell(key: str, row: dict[str, Any]) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    if key == "private_bytes":
        return f"{value / 1e6:.1f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
