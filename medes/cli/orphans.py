"""medes orphans {ls,rm}: files in a node's shared memory that its agent left alone, because it could not tell what they are
for."""

from __future__ import annotations

import time
from typing import Any

import click

from medes.cli.format import table
from medes.cli.options import agent_option, json_option, print_json, tls_from
from medes.client import MedesClient
from medes.units import bytes_text, duration_text


@click.group()
def cli() -> None:
    """Files in a node's shared memory that its agent does not know the use of.

    Any of them may hold the only copy of a living process's pages: the agent never removes one by itself.
    """


@cli.command("ls")
@json_option
@agent_option
def ls(address: str, as_json: bool, **options: Any) -> None:
    """List them, with what keeps each from being used."""
    with MedesClient(address, tls=tls_from(options)) as client:
        found = client.orphans()
    if as_json:
        print_json(found)
        return
    now_s = time.time()
    rows = [
        [o.name, bytes_text(o.bytes), duration_text(max(0.0, now_s - o.modified_unix_s)), o.code, o.reason]
        for o in found
    ]
    table(["file", "memory", "age", "code", "why it is left alone"], rows)


@cli.command("rm")
@click.argument("names", nargs=-1, required=True)
@agent_option
def rm(address: str, names: tuple[str, ...], **options: Any) -> None:
    """Remove files that `medes orphans ls` names, for good."""
    with MedesClient(address, tls=tls_from(options)) as client:
        for name in names:
            client.remove_orphan(name)
            click.echo(name)
