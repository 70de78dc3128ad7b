"""/proc/meminfo."""

from __future__ import annotations

from pathlib import Path

FILE = Path("/proc/meminfo")


def read() -> dict[str, int]:
    """Its fields now: bytes, or a count where the kernel names no unit. Empty where there is no such file."""
    try:
        return parsed(FILE.read_text())
    except OSError:
        return {}


def parsed(text: str) -> dict[str, int]:
    """As `read`, of a text; lines that are no field are passed over."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        match rest.split():
            case [number, "kB"] if number.isdigit():
                found[name] = int(number) * 1024
            case [number] if number.isdigit():
                found[name] = int(number)
    return found
