"""medes base {ls,rm,unpin}: the bases that a node holds."""

from __future__ import annotations

from typing import Any

import click

from medes.cli.format import table
from medes.cli.options import agent_option, json_option, print_error, print_json, tls_from
from medes.client import MedesClient
from medes.errors import MedesError
from medes.types import BaseStatus
from medes.units import bytes_text, duration_text


class BaseId(click.ParamType):
    """A base's id as `medes base ls` prints it: 16 hexadecimal digits."""

    name = "base_id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value, 16)
        except (TypeError, ValueError):
            number = -1
        if not 0 < number < 1 << 64:
            self.fail(f"{value!r} is no base id: 16 hexadecimal digits, see medes base ls", param, ctx)
        return number


@click.group()
def cli() -> None:
    """List and remove the base pages that a node holds."""


@cli.command("ls")
@click.option("--function", default="", help="Only this function's bases.")
@click.option("--domain", default="", help="Only those of this dedup domain.")
@json_option
@agent_option
def ls(address: str, function: str, domain: str, as_json: bool, **options: Any) -> None:
    """List the bases of the agent's node, the largest first."""
    with MedesClient(address, tls=tls_from(options)) as client:
        bases = client.bases(function, domain)
    if as_json:
        print_json([{**vars_of(b), "id": f"{b.base.base_id:016x}"} for b in bases])
        return
    columns = ["base", "function", "domain", "size", "age", "used here by", "pins", "made by", "state"]
    table(columns, [_row(b) for b in bases])


def vars_of(status: BaseStatus) -> dict[str, Any]:
    return {name: getattr(status, name) for name in BaseStatus.__slots__}


def _row(b: BaseStatus) -> list[str]:
    pins = ", ".join(f"{node} {count}" for node, count in sorted(b.pins_by_node.items()))
    state = "retired" if b.retired else "in use" if b.pins else ""
    if b.unneeded_ms:
        state = f"not needed for {duration_text(b.unneeded_ms / 1000)}"
    return [
        f"{b.base.base_id:016x}",
        b.base.function,
        b.base.domain,
        bytes_text(b.bytes),
        duration_text(b.age_ms / 1000),
        str(b.sandboxes),
        pins,
        b.made_by + ("" if b.maker_is_here or not b.made_by else " (gone)"),
        state,
    ]


@cli.command("rm")
@click.argument("base_ids", nargs=-1, required=True, type=BaseId())
@click.option(
    "--force", is_flag=True, help="Although sandboxes of its function are here. Never a pinned one."
)
@json_option
@agent_option
def rm(address: str, base_ids: tuple[int, ...], force: bool, as_json: bool, **options: Any) -> int:
    """Free bases that nobody pins. All are tried; the first failure gives the exit code."""
    freed, failures = {}, []
    with MedesClient(address, tls=tls_from(options)) as client:
        for base_id in base_ids:
            try:
                freed[f"{base_id:016x}"] = client.remove_base(base_id, force=force)
            except MedesError as error:
                print_error(error)
                failures.append(error)
    if as_json:
        print_json({"freed_bytes": freed})
    else:
        for name, size in freed.items():
            click.echo(f"{name}: {bytes_text(size)} freed")
    return failures[0].exit_code if failures else 0


@cli.command("unpin")
@click.option("--node", required=True, help="The node whose pins on this one's bases are given up.")
@click.option(
    "--force", is_flag=True, help="Although it may live: its sandboxes that need the bases are lost then."
)
@json_option
@agent_option
def unpin(address: str, node: str, force: bool, as_json: bool, **options: Any) -> None:
    """Give up the pins of a node that was renamed or will not come back. Refused while it is heard of."""
    with MedesClient(address, tls=tls_from(options)) as client:
        pins, freed_bytes = client.unpin_node(node, force=force)
    if as_json:
        print_json({"node": node, "pins": pins, "freed_bytes": freed_bytes})
    else:
        click.echo(f"{node}: {pins} pins given up, {bytes_text(freed_bytes)} freed at once")
