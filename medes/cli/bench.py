"""medes bench: one subcommand a file, medes/cli/bench_<name>.py with a click command `cli`."""

from __future__ import annotations

import importlib
import pkgutil

import click

import medes.cli
from medes.cli.options import json_lines_option

PREFIX = "bench_"


class BenchGroup(click.Group):
    """Finds its subcommands in medes/cli/bench_*.py and imports one only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = (module.name for module in pkgutil.iter_modules(medes.cli.__path__))
        names = {name.removeprefix(PREFIX).replace("_", "-") for name in found if name.startswith(PREFIX)}
        return sorted(names | set(super().list_commands(ctx)))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        own = super().get_command(ctx, name)
        if own is not None or name not in self.list_commands(ctx):
            return own
        module = importlib.import_module(f"medes.cli.{PREFIX}{name.replace('-', '_')}")
        return module.cli  # type: ignore[no-any-return]


@click.group(cls=BenchGroup)
def cli() -> None:
    """Measure. Every benchmark verifies the bytes it handles; --json prints one line per case."""


@cli.command("all")
@json_lines_option
@click.pass_context
def run_all(ctx: click.Context, as_json: bool) -> None:
    """Run every benchmark with its defaults, one after the other."""
    group = ctx.parent.command if ctx.parent else cli
    assert isinstance(group, click.Group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is None or name == "all":
            continue
        if not as_json:
            click.echo(f"\n== medes bench {name}")
        command.main(["--json"] if as_json else [], prog_name=f"medes bench {name}", standalone_mode=False)
