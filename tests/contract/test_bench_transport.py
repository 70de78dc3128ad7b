"""The transport benchmark runs tiny, so that it cannot rot."""

from __future__ import annotations

import json

from click.testing import CliRunner

from medes.bench import transport
from medes.cli.bench_transport import cli

TINY = transport.Sizes(batches=(1, 8), slab_pages=64, round_bytes=1 << 16, round_batches_max=4, rounds=2)


def test_every_case_moves_bytes_and_has_a_reference() -> None:
    lines = list(transport.measure(["local", "tcp"], TINY))
    assert [x["benchmark"] for x in lines].count("transport_setup") == 2
    cases = [x for x in lines if x["benchmark"] == "transport"]
    assert {(c["transport"], c["pages"], c["scattered"]) for c in cases} == {
        (t, p, s) for t in ("local", "tcp") for p in (1, 8) for s in (False, True)
    }
    assert all(c["gb_per_s"] > 0 and c["reference_gb_per_s"] > 0 and c["latency_us"]["n"] > 0 for c in cases)


def test_what_cannot_run_says_why() -> None:
    (skipped,) = transport.measure(["tcp+tls"], TINY)
    assert "certificate" in skipped["skipped"]


def test_command_prints_one_json_line_a_case() -> None:
    flags = ["--transport", "tcp", "--pages", "4", "--rounds", "1", "--round-mb", "1", "--json"]
    result = CliRunner().invoke(cli, flags, catch_exceptions=False)
    assert result.exit_code == 0
    lines = [json.loads(x) for x in result.output.splitlines()]
    assert [x["benchmark"] for x in lines] == ["transport_setup", "transport", "transport"]
    assert all(x["kernel"] for x in lines)
