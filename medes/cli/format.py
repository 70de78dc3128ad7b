"""Numbers and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # 50 ms that only a table has to pay
    from rich.console import Console
    from rich.table import Table


def bytes_text(count: float) -> str:
    """1536 → "1.5 KiB"."""
    sign = "-" if count < 0 else ""
    count = abs(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{sign}{count:.0f} B" if unit == "B" else f"{sign}{count:.1f} {unit}"
        count /= 1024
    return f"{sign}{count:.1f} TiB"


def maybe_bytes_text(count: float | None) -> str:
    """As bytes_text; "?" for what the agent does not tell."""
    return "?" if count is None else bytes_text(count)


def duration_text(seconds: float) -> str:
    """0.0123 → "12.3 ms"."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


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
