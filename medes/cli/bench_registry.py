"""medes bench registry: publish and lookup times of the fingerprint registry."""

from __future__ import annotations

import json
from typing import Any

import click

from medes.cli.format import table
from medes.cli.options import json_lines_option


@click.command("registry")
@click.option(
    "--bases", type=click.IntRange(1, 10_000), default=40, show_default=True, help="Bases to publish."
)
@click.option(
    "--pages",
    type=click.IntRange(1, 1 << 20),
    default=25_600,
    show_default=True,
    help="Pages of each base and of the image looked up; 25600 are 100 MiB.",
)
@click.option("--samples-per-page", type=click.IntRange(1, 16), default=8, show_default=True)
@click.option(
    "--hit-ratio", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="Pages that match."
)
@click.option("--repeats", type=click.IntRange(min=1), default=20, show_default=True, help="Timed lookups.")
@click.option(
    "--threads", type=click.IntRange(1, 256), default=2, show_default=True, help="Concurrent lookups."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--store", default="memory", show_default=True, help='"memory" or "redis://host:port/db".')
@json_lines_option
def cli(store: str, as_json: bool, **sizes: Any) -> None:
    """Time publish and lookup of the registry, in the store and through a controller. Answers are verified.

    --json prints one line per case.
    """
    from medes.bench.registry import Sizes, measure, measure_rpc
    from medes.config import ControllerSettings, load
    from medes.controller.process import open_store

    settings = load(ControllerSettings, environment={}, flags={"store": store})
    kind = store.split(":", 1)[0]
    chosen = Sizes(**sizes)
    registry = open_store(settings)
    rows = []
    try:
        for measured in (measure(chosen, registry, kind), measure_rpc(chosen, registry, kind)):
            for line in measured:
                rows.append(line)
                if as_json:
                    click.echo(json.dumps(line))
    finally:
        registry.close()
    if not as_json:
        columns = ["case", "n", "us_p50", "us_p99", "us_per_page_p50", "pages_per_s", "bytes_per_base_page"]
        table(columns, [[_cell(row.get(c, "")) for c in columns] for row in rows])


def _cell(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
