"""Bytes and times as people read them, in texts of every layer."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """1536 → "1.5 KiB"."""
    sign = "-" if count < 0 else ""
    count = abs(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{sign}{count:.0f} B" if unit == "B" else f"{sign}{count:.1f} {unit}"
        count /= 1024
    return f"{sign}{count:.1f} TiB"


def duration_text(seconds: float) -> str:
    """0.0123 → "12.3 ms"."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
