"""medes bench images: the engine on guest memory and on load images of static programs."""

from __future__ import annotations

from pathlib import Path

import click

from medes.bench import images
from medes.cli.bench_dedup import print_cases
from medes.cli.options import json_lines_option


@click.command("images")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_lines_option
def cli(files: tuple[Path, ...], as_json: bool) -> None:
    """Deduplicate memory image FILES against the first of them.

    An ELF program is loaded as it would be to run; any other file is flat guest memory. Without FILES, programs are
    linked with the same static libraries in different order. --json prints one line per case.
    """
    print_cases(images.run(files), as_json)
