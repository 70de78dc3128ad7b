"""What benchmarks of unmodified programs tell of each: lines of JSON as they are measured, or a table, then what was skipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from medes.cli.format import table
from medes.errors import CorruptError


def tell(
    rows: Iterable[dict[str, Any]],
    as_json: bool,
    columns: Mapping[str, str],
    cell: Callable[[str, Any], str],
) -> None:
    """Runs the benchmark to its end. `cell`: a value of a row as text, by its key. Raises corrupt for a program whose state
    was wrong, or that failed."""
    told = []
    for row in rows:
        told.append(row)
        if as_json:
            click.echo(json.dumps(row))
    if not as_json:
        shown = [[cell(key, row.get(key)) for key in columns] for row in told if "skipped" not in row]
        table(list(columns.values()), shown)
        for row in told:
            if "skipped" in row:
                click.echo(f"{_name(row)} skipped: {row['skipped']}")
    if failed := [row for row in told if "failure" in row]:
        raise CorruptError(failed[0]["failure"], object=_name(failed[0]))


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['program']}, {row['run']}" if "run" in row else row["program"]
