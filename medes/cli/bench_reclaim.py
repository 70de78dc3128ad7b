"""medes bench reclaim: what it costs to put a sleeper's touched pages out again."""

from __future__ import annotations

import click

from medes.bench.results import line
from medes.cli.format import table
from medes.cli.options import json_lines_option


@click.command("reclaim")
@click.option(
    "--megabytes",
    type=click.IntRange(16, 1 << 16),
    multiple=True,
    default=(256,),
    show_default=True,
    help="What the sandbox holds; repeatable.",
)
@click.option(
    "--pages", type=click.IntRange(1, 1 << 20), default=1000, show_default=True, help="Touched a round."
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True)
@json_lines_option
def cli(megabytes: tuple[int, ...], pages: int, rounds: int, as_json: bool) -> None:
    """Touch random pages of a sleeper and reclaim them, beside a restore and a dedup op for the same.

    Starts an agent of its own. Every page is checked in the end.
    """
    from medes.bench import reclaim

    cases = []
    for size in megabytes:
        for case in reclaim.run(size, pages, rounds):
            cases.append(case)
            if as_json:
                click.echo(line(case))
    if not as_json:
        columns = [c for c in cases[0] if c != "benchmark"]
        table(columns, [[str(case[c]) for c in columns] for case in cases])
    if not all(case["verified"] for case in cases):
        raise click.ClickException("pages were wrong after a reclaim")
