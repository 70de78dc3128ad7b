"""The demo's table for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

MEGABYTE = 1e6


STATES = {True: "[green]verified", False: "[red]FAILED", None: "n/a"}


def make_table(report: dict[str, Any]) -> Table:
    """One row per function, the cluster's sums below. Fits 80 columns."""
    cluster = report["cluster"]
    title = f"{report['nodes']} nodes, base pages read by {report['transport']}"
    table = Table(title=title, show_footer=True, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = {
        "function": "all",
        "done": "",
        "warm\nMB": _megabytes(cluster["warm_bytes"]),
        "held\nMB": _megabytes(cluster["kept_bytes"] + cluster["base_bytes"]),
        "saved\n%": _percent(cluster["saved_ratio"]),
        "dedup\nms": "",
        "cold\nms": "",
        "warm\nms": "",
        "first\nms": "",
        "whole\nms": "",
        "state": "",
    }
    for name, footer in columns.items():
        table.add_column(
            name, footer=footer, justify="left" if name in ("function", "state") else "right", no_wrap=True
        )
    table.caption = (
        "held: what is kept of the instances and their part of base pages; p50 of each; cold: process start to first "
        "answer; first: answer of a dedup'd instance; whole: its last page is back"
    )
    for row in report["functions"]:
        table.add_row(
            row["name"],
            f"{row['dedup_count']}/{row['instances']}",
            _megabytes(row["warm_bytes"]),
            _megabytes(row["kept_bytes"] + row["base_share_bytes"]),
            _percent(row["saved_ratio"]),
            _milliseconds(row["dedup_ms_p50"]),
            _milliseconds(row["cold_start_ms_p50"]),
            _milliseconds(row["warm_ms_p50"]),
            _milliseconds(row["restore_first_response_ms_p50"]),
            _milliseconds(row["restore_complete_ms_p50"]),
            STATES[row["state_verified"]],
        )
    return table


def cluster_line(report: dict[str, Any]) -> str:
    """What was saved after base pages are paid for."""
    cluster = report["cluster"]
    held = cluster["kept_bytes"] + cluster["base_bytes"]
    return (
        f"{_megabytes(cluster['warm_bytes'])} MB of warm sandboxes became {_megabytes(held)} MB "
        f"({_megabytes(cluster['kept_bytes'])} kept + {_megabytes(cluster['base_bytes'])} base pages): "
        f"{_percent(cluster['saved_ratio'])} % saved ({_percent(cluster['gross_saved_ratio'])} % gross); "
        f"{cluster['base_pages_read_remote']} base pages read from other nodes"
    )


def _number(value: float) -> str:
    """Three digits or more need no decimals: columns stay narrow."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _megabytes(size_bytes: int) -> str:
    return _number(size_bytes / MEGABYTE)


def _percent(ratio: float) -> str:
    return _number(100 * ratio)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else _number(value)
