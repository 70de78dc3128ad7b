"""The activity benchmark: both ways are measured, and its agent leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medes.cli.main import run


def test_both_ways_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(Path("/tmp").glob("medes-bench-*"))
    assert run(["bench", "activity", "--pairs", "20", "--json"]) == 0
    stream, calls = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(line["case"], line["n"]) for line in (stream, calls)] == [("stream", 20), ("calls", 20)]
    assert all(line["us_p50"] > 0 and line["us_p99"] >= line["us_p50"] for line in (stream, calls))
    assert set(Path("/tmp").glob("medes-bench-*")) <= before
