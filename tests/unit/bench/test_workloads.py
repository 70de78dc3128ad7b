"""What the benchmarks on functions share, and the baselines' parts that need no privilege."""

from pathlib import Path

import pytest

from medes.bench import baselines, criu, criu_program, workloads, zram
from medes.errors import InvalidArgumentError
from medes.runtimes import manifest


def test_functions_are_chosen_by_name() -> None:
    assert [s.name for s in workloads.select(None, ["vanilla", "aes"])] == ["aes", "vanilla"]
    assert len(workloads.select(None)) == 10
    with pytest.raises(InvalidArgumentError, match="no such function"):
        workloads.select(None, ["vanilla", "nobody"])


def test_a_baseline_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "criu"
    old.write_text("#!/bin/sh\necho Version: 3.17.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("MEDES_CRIU", str(old))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(criu_program, "CRIU_VERSION_MIN", (99, 0))
    spec = manifest.load(manifest.bundled_directory() / "vanilla")
    (reason,) = baselines.run("criu", lambda: criu.measure(spec, 1)).values()
    assert "no CRIU" in reason and "build-criu.sh" in reason
    swaps = "Filename\tType\tSize\tUsed\tPriority\n"
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: swaps)
    with pytest.raises(baselines.Skipped, match="no swap on zram"):
        zram.active_device()
    swaps += "/dev/zram3 partition 1 0 -2\n"
    assert zram.active_device() == "zram3"
    with pytest.raises(baselines.Skipped, match="zram3"), zram.temporary_swap():
        pass


def test_memory_is_pushed_out_to_a_zram_device_made_for_it() -> None:
    spec = manifest.load(manifest.bundled_directory() / "vanilla")
    devices, swaps = sorted(Path("/sys/block").glob("zram*")), Path("/proc/swaps").read_text()
    try:
        figures = zram.measure(spec, 2, set_up=True)
    except baselines.Skipped as reason:
        pytest.skip(str(reason))
    assert figures["kept_bytes"] > 0 and figures["first_response_ms_p50"] > 0
    assert sorted(Path("/sys/block").glob("zram*")) == devices
    assert Path("/proc/swaps").read_text() == swaps


def test_a_function_behind_a_port_answers_over_connections(tmp_path: Path) -> None:
    spec = manifest.load(manifest.bundled_directory() / "vanilla")
    with criu._adopting_orphans():
        process, port = criu._start_listening(spec, tmp_path)
        try:
            first = criu._ask(port, spec, spec.event)
            assert criu._ask(port, spec, spec.event) == first
        finally:
            process.kill()
            process.wait()
