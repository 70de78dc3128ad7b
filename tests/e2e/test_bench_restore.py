"""`medes bench restore`, tiny: the lines have what they promise and the answers are checked."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from medes.bench import restore_remote
from medes.bench.restore import Options, run
from medes.runtimes import manifest

LINE_KEYS = {
    "function", "private_bytes", "cold_start_ms_p50", "warm_ms_p50", "first_response_ms_p50", "first_response_ms_p99",
    "first_response_no_prefetch_ms_p50", "complete_ms_p50", "pages_prefetched", "faults_demand", "commit", "cpu",
    "kernel", "transport", "n",
}  # fmt: skip


@pytest.fixture
def spec(tmp_path: Path) -> manifest.FunctionSpec:
    (tmp_path / "code.py").write_text(
        "import random\n"
        "data = [random.Random(n).randbytes(2000) for n in range(1000)]\n"
        "def handler(event, context):\n"
        "    return sum(part[event['seed'] % 2000] for part in data)\n"
    )
    (tmp_path / "function.toml").write_text(
        'name = "tiny"\nhandler = "code:handler"\nevent = { seed = 1 }\nidempotent = true\n'
    )
    return manifest.load(tmp_path)


@pytest.mark.live
def test_lines_of_a_tiny_run(spec: manifest.FunctionSpec) -> None:
    async def collect() -> list[dict[str, Any]]:
        options = Options(rounds=3, pairs=2, storm=4, with_baselines=False)
        return [line async for line in run([spec], options)]

    function, storm = asyncio.run(collect())
    assert set(function) >= LINE_KEYS
    assert (function["benchmark"], function["function"], function["n"]) == ("restore", "tiny", 3)
    assert function["pages_prefetched"] > 0
    assert function["complete_ms_p50"] > 0
    assert function["verified"] is True
    for which in ("restored", "control"):
        by_pair = function[f"{which}_throughput_ratio_by_pair"]
        assert len(by_pair) == 2 and all(ratio > 0 for ratio in by_pair)
        assert min(by_pair) <= function[f"{which}_throughput_ratio"] <= max(by_pair)
    assert (storm["benchmark"], storm["sandboxes"], storm["verified"]) == ("restore_storm", 4, True)
    assert storm["first_response_ms_p99"] >= storm["first_response_ms_p50"] > 0


@pytest.mark.live
def test_lines_of_a_tiny_run_with_bases_elsewhere(spec: manifest.FunctionSpec) -> None:
    async def collect() -> list[dict[str, Any]]:
        return [line async for line in restore_remote.run([spec], 3)]

    local, remote, kept = asyncio.run(collect())
    assert [line["case"] for line in (local, remote, kept)] == ["local", "remote", "remote, kept"]
    for line in (local, remote, kept):
        assert (line["function"], line["n"], len(line["added_ms"])) == ("tiny", 3, 3)
    assert local["pages_read_remotely"] == [0, 0, 0]
    assert min(remote["pages_read_remotely"]) > 0
    assert kept["pages_read_remotely"][2] < kept["pages_read_remotely"][0]
