"""Numbers and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medes.units import bytes_text

if TYPE_CHECKING:  # 50 ms that only a table has to pay
    from rich.console import Console
    from rich.table import Table


def maybe_bytes_text(count: float | None) -> str:
    """As bytes_text; "?" for what the agent does not tell."""
    return "?" if count is None else bytes_text(count)


def build_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A rich table; cell texts are taken literally (names come from callers and may hold brackets)."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Prints it."""
    wide_console().print(build_table(columns, rows, title))


def wide_console() -> Console:
    """A console that breaks no lines where the output is no terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=250)
