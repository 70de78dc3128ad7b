"""The reader of /proc/meminfo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medes import meminfo


def test_amounts_are_bytes_and_counts_are_counts() -> None:
    text = "MemTotal:       4096 kB\nHugePages_Total:       3\nMemFree: much kB\nDirty: 1 GB\nnothing\n: \n"
    assert meminfo.parsed(text) == {"MemTotal": 4096 * 1024, "HugePages_Total": 3}


def test_this_machines_total_is_what_the_kernel_says_elsewhere() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert meminfo.read()["MemTotal"] == pytest.approx(total, rel=0.01)


def test_a_missing_file_has_no_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meminfo, "FILE", tmp_path / "meminfo")
    assert meminfo.read() == {}
