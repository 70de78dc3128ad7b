"""medes bench activity: what begin and end cost a runtime."""

from __future__ import annotations

import json

import click

from medes.cli.format import table
from medes.cli.options import json_lines_option

COLUMNS = ("us_p50", "us_p99", "client_cpu_us", "agent_cpu_us")


@click.command("activity")
@click.option(
    "--pairs", type=click.IntRange(1, 1_000_000), default=3000, show_default=True, help="Of each way."
)
@json_lines_option
def cli(pairs: int, as_json: bool) -> None:
    """Time the begin and the end of a request over the client's stream and as two calls, in turns.

    Starts an agent of its own. --json prints one line per case.
    """
    from medes.bench import activity

    lines = list(activity.run(pairs))
    if as_json:
        for line in lines:
            click.echo(json.dumps(line))
        return
    table(
        ["pair by", *COLUMNS], [[str(line["case"]), *(f"{line[c]:.0f}" for c in COLUMNS)] for line in lines]
    )
    stream, calls = lines
    click.echo(f"the stream takes {stream['us_p50'] / calls['us_p50']:.2f} of the time")
