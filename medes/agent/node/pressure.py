"""Is memory short on this node: a limit of our own, PSI where the kernel has it, MemAvailable where it does not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medes import meminfo
from medes.units import bytes_text

PSI_FILE = Path("/proc/pressure/memory")
# Share of the last ten seconds in which some task waited for memory.
PSI_SOME_AVG10_PERCENT_HIGH = 5.0
AVAILABLE_RATIO_LOW = 0.05
LIMIT_RATIO_HIGH = 0.95


@dataclass(frozen=True, slots=True)
class Pressure:
    """`high` asks for dedup ops before their time; `text` says what was seen."""

    high: bool
    text: str


def machine_bytes() -> int:
    """All memory that the kernel has to give."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def psi_some_avg10(text: str) -> float | None:
    """The avg10 of the "some" line of a PSI file; None when it is not there."""
    for line in text.splitlines():
        fields = line.split()
        if fields and fields[0] == "some":
            for item in fields[1:]:
                name, _, value = item.partition("=")
                if name == "avg10":
                    try:
                        return float(value)
                    except ValueError:
                        return None
    return None


def available_ratio(text: str) -> float | None:
    """MemAvailable / MemTotal of /proc/meminfo; None when they are not there."""
    values = meminfo.parsed(text)
    total, available = values.get("MemTotal", 0), values.get("MemAvailable")
    return available / total if total and available is not None else None


def judge(used_bytes: int, limit_bytes: int, psi_text: str, meminfo_text: str) -> Pressure:
    """Pure: the node's own limit first, then the machine."""
    if limit_bytes and used_bytes >= limit_bytes * LIMIT_RATIO_HIGH:
        return Pressure(True, f"high: {bytes_text(used_bytes)} of {bytes_text(limit_bytes)}")
    stalled = psi_some_avg10(psi_text)
    if stalled is not None:
        if stalled >= PSI_SOME_AVG10_PERCENT_HIGH:
            return Pressure(True, f"high: memory stalls {stalled:.1f} % of the time")
        return Pressure(False, f"none (stalls {stalled:.1f} %)")
    ratio = available_ratio(meminfo_text)
    if ratio is None:
        return Pressure(False, "unknown: neither PSI nor MemAvailable")
    return Pressure(ratio < AVAILABLE_RATIO_LOW, f"{'high' if ratio < AVAILABLE_RATIO_LOW else 'none'} "
                    f"({ratio:.0%} available)")  # fmt: skip


def read_pressure(used_bytes: int, limit_bytes: int) -> Pressure:
    """The same from this machine's files."""
    psi = _text(PSI_FILE)
    stalls_told = psi_some_avg10(psi) is not None  # then nobody asks what is available
    return judge(used_bytes, limit_bytes, psi, "" if stalls_told else _text(meminfo.FILE))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
