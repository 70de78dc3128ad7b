"""medes certs: the CA of a cluster and what it signs."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medes.certs.folder import CA_FILE, DEFAULT, VARIABLE, cluster_folder, load_authority, make_authority
from medes.certs.parties import Party, Role
from medes.cli.format import table
from medes.cli.options import json_option, print_json

if TYPE_CHECKING:
    from medes.certs.authority import Details

DAYS = 90.0

cluster_option = click.option(
    "--cluster-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"The folder of the cluster's CA.  [{VARIABLE}, else {DEFAULT}]",
)


@click.group()
def cli() -> None:
    """The CA of a cluster and the certificates of its nodes.

    On a single machine nothing needs to be done: the first daemon makes a CA, and each issues itself what it needs.
    For several machines, run init and issue where the CA is to stay, and take each node its three files.
    """


@cli.command()
@cluster_option
def init(cluster_dir: Path | None) -> None:
    """Make a CA. Whoever can read its folder can be any node of the cluster."""
    folder = cluster_folder(str(cluster_dir or ""))
    made = make_authority(folder)
    click.echo(f"{made.name}: {folder}, certificate {folder / CA_FILE}")


@cli.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([r.value for r in Role]),
    default=Role.NODE.value,
    show_default=True,
    help="What it is for: a node's agent, the controller, a viewer (medes top), a runtime on the restore API over TCP.",
)
@click.option(
    "--host", "hosts", multiple=True, help="A host name or address that its clients use; repeatable."
)
@click.option(
    "--domains", default="", help="Dedup domains a node may have to do with, with commas; without: all."
)
@click.option("--days", type=click.FloatRange(min=0.001, max=3650), default=DAYS, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder to write to."
)
@cluster_option
def issue(
    name: str,
    role: str,
    hosts: tuple[str, ...],
    domains: str,
    days: float,
    out: Path,
    cluster_dir: Path | None,
) -> None:
    """Write NAME.crt, NAME.key and ca.crt. NAME is the node_id of a node."""
    from medes.certs.files import issue_files

    narrowed = frozenset(filter(None, (d.strip() for d in domains.split(","))))
    party = Party(Role(role), name, narrowed if domains else None)
    authority = load_authority(cluster_folder(str(cluster_dir or "")))
    written = issue_files(authority, party, hosts, days=days, folder=out)
    click.echo(f"{party}: {written.certificate}, {written.private_key}, {written.ca}")


@cli.command()
@click.argument("certificates", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@cluster_option
def renew(certificates: tuple[Path, ...], cluster_dir: Path | None) -> None:
    """Sign NAME.crt files again, for as long as before, with a new NAME.key. Daemons take them over while they run."""
    from medes.certs.files import renew_files

    authority = load_authority(cluster_folder(str(cluster_dir or "")))
    for path in certificates:
        _, found = renew_files(authority, path)
        click.echo(f"{found.party}: {path}, until {_time(found.expires_s)}")


@cli.group()
def ca() -> None:
    """Exchange the CA of a cluster that runs: prepare, switch, retire, in this order.

    After each step the other machines get the new ca.crt (medes certs renew writes it too), and every daemon has looked
    at its files, which takes it 15 s. Who is left with a certificate of the old CA after retire is not believed any more.
    """


at_once_option = click.option(
    "--at-once",
    is_flag=True,
    help="Without waiting for the daemons of this machine to have seen the step before.",
)


@ca.command()
@cluster_option
def prepare(cluster_dir: Path | None) -> None:
    """Make the next CA and have it believed beside the present one."""
    from medes.certs import exchange

    folder = cluster_folder(str(cluster_dir or ""))
    coming = exchange.prepare(folder)
    click.echo(
        f"{coming.name}: believed too, take {folder / CA_FILE} to every machine; then medes certs ca switch"
    )


@ca.command()
@at_once_option
@cluster_option
def switch(at_once: bool, cluster_dir: Path | None) -> None:
    """Sign with the next CA from now on."""
    from medes.certs import exchange

    signs = exchange.switch(cluster_folder(str(cluster_dir or "")), at_once=at_once)
    click.echo(
        f"{signs.name}: signs; medes certs renew what the other machines have, then medes certs ca retire"
    )


@ca.command()
@at_once_option
@cluster_option
def retire(at_once: bool, cluster_dir: Path | None) -> None:
    """Believe the CA before no more."""
    from medes.certs import exchange

    folder = cluster_folder(str(cluster_dir or ""))
    left = exchange.retire(folder, at_once=at_once)
    click.echo(f"{left.name}: alone is believed, take {folder / CA_FILE} to every machine")


@cli.command()
@click.argument("certificates", nargs=-1, type=click.Path(path_type=Path, dir_okay=False))
@json_option
@cluster_option
def show(certificates: tuple[Path, ...], as_json: bool, cluster_dir: Path | None) -> None:
    """What certificates say and how long they last; without any, the cluster's CA."""
    from medes.certs.authority import details
    from medes.certs.identity import read_pem

    if certificates:
        found = [(str(p), details(read_pem(str(p), "certificate"), str(p))) for p in certificates]
    else:
        folder = cluster_folder(str(cluster_dir or ""))
        found = [(str(folder / CA_FILE), details(load_authority(folder).certificate_pem, str(folder)))]
    now_s = time.time()
    rows = [_row(path, d, now_s) for path, d in found]
    if as_json:
        print_json(rows)
        return
    cells = [
        [r["file"], r["party"], ", ".join(r["hosts"]), r["issuer"], r["expires"], f"{r['days_left']:.1f}"]
        for r in rows
    ]
    table(["file", "for", "names", "CA", "until", "days left"], cells)


def _row(path: str, found: Details, now_s: float) -> dict[str, Any]:
    party = found.party
    return {
        "file": path,
        "party": str(party) if party else "CA" if found.is_ca else "nobody by name",
        "role": party.role.value if party else "",
        "name": party.name if party else "",
        "domains": sorted(party.domains) if party and party.domains is not None else None,
        "hosts": list(found.names),
        "issuer": found.issuer,
        "expires": _time(found.expires_s),
        "days_left": round(found.days_left(now_s), 2),
    }


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
