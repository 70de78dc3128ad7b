"""What the benchmarks on functions share, and the baselines' parts that need no privilege."""

from pathlib import Path

import pytest

from medes.bench import baselines, workloads
from medes.errors import InvalidArgumentError
from medes.faas import manifest


def test_functions_are_chosen_by_name() -> None:
    assert [s.name for s in workloads.select(None, ["vanilla", "aes"])] == ["aes", "vanilla"]
    assert len(workloads.select(None)) == 10
    with pytest.raises(InvalidArgumentError, match="no such function"):
        workloads.select(None, ["vanilla", "nobody"])


def test_percentiles_are_nearest_rank() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [workloads.percentile(values, p) for p in (0, 1, 50, 99, 100)] == [1.0, 1.0, 50.0, 99.0, 100.0]
    assert workloads.percentile([], 50) is None
    assert workloads.percentile([1.23456], 99) == 1.235


def test_a_baseline_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "criu"
    old.write_text("#!/bin/sh\necho Version: 3.17.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("MEDES_CRIU", str(old))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(baselines, "CRIU_VERSION_MIN", (99, 0))
    spec = manifest.load(manifest.bundled_directory() / "vanilla")
    (reason,) = baselines.run("criu", lambda: baselines.criu(spec, 1)).values()
    assert "no CRIU" in reason and "build-criu.sh" in reason
    swaps = "Filename\tType\tSize\tUsed\tPriority\n"
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: swaps)
    with pytest.raises(baselines.Skipped, match="no swap on zram"):
        baselines.zram_device()
    swaps += "/dev/zram3 partition 1 0 -2\n"
    assert baselines.zram_device() == "zram3"


def test_a_function_behind_a_port_answers_over_connections(tmp_path: Path) -> None:
    spec = manifest.load(manifest.bundled_directory() / "vanilla")
    with baselines._adopting_orphans():
        process, port = baselines._start_listening(spec, tmp_path)
        try:
            first = baselines._ask(port, spec, spec.event)
            assert baselines._ask(port, spec, spec.event) == first
        finally:
            process.kill()
            process.wait()
