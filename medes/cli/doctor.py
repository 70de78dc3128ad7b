"""medes doctor: what works on this machine, what does not, and how to get it."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from medes.cli.format import wide_console
from medes.cli.options import json_option, print_json
from medes.doctor import Check, examine, machine
from medes.errors import UnsupportedError


@click.command()
@json_option
def cli(as_json: bool) -> int:
    """Try what Medes needs from kernel, devices and libraries, and say how to get what is missing.

    Changes nothing. Run it as the user the agent runs as. Ends with the code of `unsupported` where no running process can
    be deduplicated.
    """
    checks = examine()
    live = live_driver_works(checks)
    if as_json:
        print_json({"live_driver": live, "checks": checks})
        return 0 if live else UnsupportedError.exit_code
    console = wide_console()
    for group in dict.fromkeys(c.group for c in checks):
        console.print(_table(group, [c for c in checks if c.group == group]))
    if live:
        console.print("Running processes can be deduplicated here.")
        return 0
    console.print("Running processes cannot be deduplicated here:")
    for check in checks:
        if check.name == machine.LIVE_DRIVER and not check.works:
            console.print(Text(f"  {check.detail}" + (f" → {check.fix}" if check.fix else "")))
    return UnsupportedError.exit_code


def live_driver_works(checks: list[Check]) -> bool:
    """What the driver's own probe found. The other checks tell why it says no; that one of them fails does not mean
    that the driver cannot do without it."""
    own = [c.works for c in checks if c.name == machine.LIVE_DRIVER]
    return bool(own) and all(own)


def _table(group: str, checks: list[Check]) -> Table:
    grid = Table(
        title=group, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    grid.add_column(width=3)
    grid.add_column(min_width=24)
    grid.add_column(overflow="fold")
    for check in checks:
        needed = f" [needed for {check.needed_for}]" if check.needed_for and not check.works else ""
        fix = f" → {check.fix}" if check.fix and not check.works else ""
        mark = Text("yes", "green") if check.works else Text("no", "red" if check.needed_for else "yellow")
        grid.add_row(mark, Text(check.name), Text(f"{check.detail}{needed}{fix}"))
    return grid
