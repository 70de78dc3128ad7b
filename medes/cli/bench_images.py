"""medes bench images: the engine on guest memory and on load images of static programs."""

from __future__ import annotations

from pathlib import Path

import click

from medes.bench import images
from medes.bench.measure import line
from medes.cli.bench_dedup import HEADING, text_row
from medes.cli.options import json_option


@click.command("images")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_option
def cli(files: tuple[Path, ...], as_json: bool) -> None:
    """Deduplicate memory image FILES against the first of them.

    An ELF program is loaded as it would be to run; any other file is flat guest memory. Without FILES, programs are
    linked with the same static libraries in different order. --json prints one line per case.
    """
    if not as_json:
        click.echo(HEADING)
    for case in images.run(files):
        click.echo(line(case) if as_json else text_row(case))
