"""`medes demo`"""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from medes.cli.options import json_option, print_json

EXIT_NOT_VERIFIED = 1


@click.command()
@click.option(
    "--functions",
    "directory",
    type=click.Path(path_type=Path),
    help="Folder of functions to use instead of the project's ten (see docs/functions.md).",
)
@click.option(
    "--instances",
    type=click.IntRange(1, 100),
    help="Instances of each function.  [that of function.toml, or 3]",
)
@click.option("--nodes", type=click.IntRange(1, 16), default=2, show_default=True, help="Agents to start.")
@click.option(
    "--transport",
    type=click.Choice(["auto", "tcp", "rdma"]),
    default="auto",
    show_default=True,
    help="How nodes read each other's base pages.",
)
@click.option(
    "--driver",
    type=click.Choice(["auto", "live", "image"]),
    default="auto",
    show_default=True,
    help="live frees memory; image works on captured images and frees nothing.",
)
@json_option
def cli(
    directory: Path | None, instances: int | None, nodes: int, transport: str, driver: str, as_json: bool
) -> int:
    """Dedup and restore real functions on a small cluster, and show what it saves and costs.

    Starts a controller and agents as processes of their own, runs the functions as sandboxes, dedups and restores
    them, compares their answers, and leaves nothing behind. Exit code 1: a state could not be verified.
    """
    from medes.runtimes import manifest
    from medes.runtimes.host import requirements

    specs = manifest.load_all(directory or manifest.bundled_directory())
    requirements.check(specs)
    return asyncio.run(_run(specs, instances, nodes, transport, driver, as_json))


async def _run(
    specs: list[Any], instances: int | None, nodes: int, transport: str, driver: str, as_json: bool
) -> int:
    from medes import native
    from medes.demo.cluster import local_cluster
    from medes.demo.driver import Demo
    from medes.demo.table import cluster_line, make_table

    console = Console(stderr=True)
    missing = getattr(native, "probe_live", lambda: {"live driver": "this build has none"})()
    if missing and driver == "auto":
        reasons = "; ".join(f"{what}: {how}" for what, how in missing.items())
        console.print(
            f"The live driver cannot run here ({reasons}). Working on captured memory images instead: every page "
            "is rebuilt and compared, no memory is freed.",
            soft_wrap=True,
        )
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Where nobody watches, the bars would leave nothing but an empty line.
    bars = Console(stderr=True, quiet=not console.is_interactive)
    with Progress(*columns, console=bars, transient=True) as progress:
        starting = progress.add_task(f"starting {nodes} agents", total=None)
        async with local_cluster(nodes, transport, "" if driver == "auto" else driver) as cluster:
            progress.remove_task(starting)
            demo = Demo(cluster, specs, instances)
            steps = (
                ("deploying", demo.deploy),
                ("recording working sets", demo.record),
                ("warming with own inputs", demo.warm),
                ("deduplicating", demo.dedup),
                ("restoring and comparing", demo.restore),
            )
            for text, step in steps:
                task = progress.add_task(text, total=demo.instance_count)
                await step(functools.partial(progress.advance, task))
            report = demo.report(transport)
    if as_json:
        print_json(report)
    else:
        out = Console()
        out.print(make_table(report))
        out.print(cluster_line(report), soft_wrap=True)
    for failure in demo.failures:
        click.echo(f"medes: {failure}", err=True)
    sys.stdout.flush()
    return 0 if demo.succeeded() else EXIT_NOT_VERIFIED
