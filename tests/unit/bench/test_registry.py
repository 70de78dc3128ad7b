"""The registry benchmark, tiny: its answers are right and it notices wrong ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from medes.bench.registry import Sizes, make_base, make_image, verify
from medes.cli.bench_registry import cli
from medes.controller.registry.store import MemoryStore
from medes.errors import CorruptError

TINY = Sizes(bases=3, pages=50, repeats=2)


def test_lines() -> None:
    arguments = ["--bases", "3", "--pages", "50", "--repeats", "2", "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["case"] for line in lines] == ["publish", "lookup", "lookup_concurrent", "lookup_rpc"]
    for line in lines:
        assert line["n"] > 0 and line["us_p99"] >= line["us_p50"] > 0
        assert line["kernel"] and line["cpu"]
    assert lines[0]["bytes_per_base_page"] > 0
    assert lines[3]["answer_bytes"] == 50 * 8 * 2 * 8
    text = CliRunner().invoke(cli, arguments[:-1], catch_exceptions=False).stdout
    assert "lookup_rpc" in text


def test_a_wrong_answer_is_noticed() -> None:
    store = MemoryStore()
    for base_id in range(1, TINY.bases + 1):
        base, hashes, positions = make_base(TINY, base_id)
        store.publish(base, hashes, positions, TINY.samples_per_page)
    image = make_image(TINY)
    found = store.lookup("bench", image.hashes, TINY.samples_per_page)
    verify(image, found, TINY.samples_per_page)
    page = next(i for i, e in enumerate(image.expected) if e)
    hole = page * TINY.samples_per_page * 16
    damaged = found.locations[:hole] + b"\xff" * 16 + found.locations[hole + 16 :]
    for wrong in (replace(found, locations=damaged), replace(found, locations=found.locations[:-8])):
        with pytest.raises(CorruptError):
            verify(image, wrong, TINY.samples_per_page)
