"""medes bench transport: page reads by transport, beside memcpy, a bare socket and bare verbs."""

from __future__ import annotations

from typing import Any

import click

from medes.cli.format import table
from medes.cli.options import json_lines_option

COLUMNS = (
    "transport", "pages", "layout", "p50 µs", "p99 µs", "max µs", "n", "GB/s", "of reference", "reads/s/core",
    "pages/s/core", "client CPU s/GB", "server CPU s/GB", "reference CPU s/GB",
)  # fmt: skip


@click.command("transport")
@click.option(
    "--transport",
    "transports",
    multiple=True,
    help="Measure these only (repeatable), and fail where one cannot run: local, tcp, tcp-unchecked, tcp+tls, and those "
    "that are registered (rdma). All that run here otherwise.",
)
@click.option("--pages", multiple=True, type=click.IntRange(1, 8192), help="Pages a batch (repeatable).")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--depth", type=click.IntRange(1, 64), default=2, show_default=True, help="Batches in flight.")
@click.option(
    "--round-mb", type=click.IntRange(1, 4096), default=64, show_default=True, help="MB moved by one round."
)
@click.option(
    "--peers",
    multiple=True,
    type=click.IntRange(1, 4096),
    help="Instead: set-up, memory and latency of RDMA with that many connections (repeatable).",
)
@click.option(
    "--tls-certificate",
    type=click.Path(exists=True, dir_okay=False),
    help="For tcp+tls, with the next two; throw-away ones otherwise.",
)
@click.option("--tls-private-key", type=click.Path(exists=True, dir_okay=False))
@click.option("--tls-ca", type=click.Path(exists=True, dir_okay=False))
@json_lines_option
def cli(
    transports: tuple[str, ...],
    pages: tuple[int, ...],
    rounds: int,
    depth: int,
    round_mb: int,
    peers: tuple[int, ...],
    tls_certificate: str | None,
    tls_private_key: str | None,
    tls_ca: str | None,
    as_json: bool,
) -> None:
    """Time page reads: batches of contiguous and scattered pages, latency, throughput and CPU time of both sides.

    --json prints one line per case. `of reference` compares with memcpy (local), READs on bare verbs (rdma), tcp
    (tcp+tls; connection set-up in turn with it as well) or a bare socket (all others) that moved the same bytes in the
    same run, in turn, medians. With rdma, perftest's ib_read_bw is run on the same
    device at the same read sizes, where it is installed.
    """
    from medes.bench import transport
    from medes.bench.results import line
    from medes.rpc.tls import TlsFiles

    if peers:
        for case in transport.measure_peers(peers):
            click.echo(line(case))
        return
    defaults = transport.Sizes()
    biggest = max(pages or defaults.batches)
    sizes = transport.Sizes(
        batches=pages or defaults.batches,
        slab_pages=max(defaults.slab_pages, biggest) if not pages else max(512, 2 * biggest),
        round_bytes=round_mb << 20,
        rounds=rounds,
        depth=depth,
    )
    tls = TlsFiles(tls_certificate or "", tls_private_key or "", tls_ca or "")
    rows: list[list[str]] = []
    for case in transport.measure(transports, sizes, tls):
        if as_json:
            click.echo(line(case))
        else:
            rows += _rows(case)
    if not as_json:
        table(COLUMNS, rows)


def _rows(case: dict[str, Any]) -> list[list[str]]:
    if case["benchmark"] != "transport_setup":
        return [_row(case)]
    what = {"connect_us": "connect", "reference_connect_us": "reference connect"}
    return [
        [case["transport"], "", text, *(str(case[name][key]) for key in ("p50", "p99", "max", "n"))]
        for name, text in what.items()
        if name in case
    ]


def _row(case: dict[str, Any]) -> list[str]:
    if "skipped" in case:
        return [case.get("reference", case["transport"]), "", f"skipped: {case['skipped']}"]
    if case["benchmark"] == "transport_reference":
        text = f"{case['read_bytes']} B × {case['reads_in_flight']} in flight"
        return [case["reference"], "", text, "", "", "", "", str(case["gb_per_s"])]
    times = case["latency_us"]
    return [
        case["transport"],
        str(case["pages"]),
        "scattered" if case["scattered"] else "contiguous",
        str(times["p50"]),
        str(times["p99"]),
        str(times["max"]),
        str(times["n"]),
        str(case["gb_per_s"]),
        f"{case['of_reference']:.0%}",
        str(case["reads_per_s_per_core"]),
        str(case["pages_per_s_per_core"]),
        str(case["client_cpu_s_per_gb"]),
        str(case["server_cpu_s_per_gb"]),
        str(case["reference_cpu_s_per_gb"]),
    ]
