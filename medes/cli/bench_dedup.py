"""medes bench dedup: savings and speed of the engine, beside the paper's scheme, zstd, lz4 and KSM."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from medes import native
from medes.bench import dedup
from medes.bench.results import line
from medes.cli.options import json_lines_option

HEADING = (
    f"{'function':12} {'bases':7} {'scheme':14} {'saved':>7} {'patch B':>8} {'encode':>8} {'apply':>8}"
    "  GB/s per core"
)


@click.command("dedup")
@click.option(
    "--functions",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of functions to use instead of the project's ten.",
)
@click.option(
    "--instances",
    type=click.IntRange(2, 100),
    default=2,
    show_default=True,
    help="Instances of each function: the first is the base.",
)
@click.option("--aslr", type=click.Choice(["on", "off"]), default="on", show_default=True)
@click.option(
    "--schemes",
    default=",".join(dedup.SCHEMES),
    show_default=True,
    help="Comma-separated; all on the same captured images.",
)
@click.option(
    "--samples",
    type=click.IntRange(1, native.MAX_SAMPLES),
    default=native.DEFAULT_SAMPLES,
    show_default=True,
    help="k, hashes per page fingerprint.",
)
@click.option(
    "--paper-sample",
    type=click.IntRange(1, 1_000_000),
    default=40,
    show_default=True,
    help="Pages of each image that scheme paper really patches (its tool takes milliseconds a page).",
)
@json_lines_option
def cli(
    directory: Path | None,
    instances: int,
    aslr: str,
    schemes: str,
    samples: int,
    paper_sample: int,
    as_json: bool,
) -> None:
    """Run the functions, capture their memory and deduplicate it with each scheme.

    Times are CPU time of all threads, so GB/s are per core. --json prints one line per case.
    """
    chosen = [name.strip() for name in schemes.split(",") if name.strip()]
    print_cases(dedup.run(directory, instances, aslr == "on", chosen, samples, paper_sample), as_json)


def print_cases(cases: Iterable[dict[str, object]], as_json: bool) -> None:
    """Each as soon as it is measured; the heading with the first, so that refused arguments print an error only."""
    for number, case in enumerate(cases):
        if not as_json and number == 0:
            click.echo(HEADING)
        click.echo(line(case) if as_json else text_row(case))


def text_row(case: dict[str, object]) -> str:
    """One line of the text report."""

    def number(name: str, pattern: str) -> str:
        value = case[name]
        return "-" if value is None else format(value, pattern)

    return (
        f"{case['function']:12} {case['bases']:7} {case['scheme']:14} {number('saved_ratio', '.1%'):>7} "
        f"{number('mean_patch_bytes', '.0f'):>8} {number('gb_per_s_per_core_encode', '.2f'):>8} "
        f"{number('gb_per_s_per_core_apply', '.2f'):>8}"
    )
