"""`medes bench asleep`, tiny: the lines have what they promise, the program's state was looked at, and nothing is left."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from medes import native
from medes.bench import asleep
from medes.bench.agent import running_agent
from medes.bench.asleep_making import Made, Program, Served, Sizes, started
from medes.bench.asleep_others import KSM, KSM_SETTINGS, OTHERS, Applied, Other
from medes.bench.asleep_others import watch as watch_other
from medes.bench.asleep_programs import PROGRAMS
from medes.bench.asleep_sleep import Sample, Watched
from medes.bench.asleep_state import Files, Items, item
from medes.bench.baselines import Skipped
from medes.cli.bench_asleep import cli
from medes.client import MedesClient
from medes.errors import CorruptError, InvalidArgumentError
from medes.types import DedupReport, Sandbox, SandboxState

LINE_KEYS = {
    "program", "run", "round", "warm_bytes", "saved_ratio_time_averaged", "base_share_bytes", "asleep_ratio",
    "faults_first_minute", "faults_per_hour_after", "agent_cpu_ratio", "probe_ms_p50", "probe_ms_p99",
    "probe_warm_ms_p50", "verified", "commit", "cpu", "kernel", "load_average",
}  # fmt: skip


@pytest.mark.live
def test_lines_of_a_tiny_run() -> None:
    options = asleep.Options(programs=("pool",), seconds=3.0, probe_every_s=0.5, rounds=2, items=5000)
    lines = list(asleep.run(options))
    assert [(line["run"], line["round"]) for line in lines] == [
        ("alone", 1),
        ("alone", 2),
        ("probed", 1),
        ("probed", 2),
    ]
    for line in lines:
        assert set(line) >= LINE_KEYS
        assert line["verified"] is True, line
        assert line["agent_warm_bytes"] > 0.9 * line["warm_bytes"] > 1 << 20
        assert 0 <= line["asleep_ratio"] <= 1
        assert 0 < line["saved_ratio_time_averaged"] < 1
        assert line["faults_first_minute"] >= 0 and line["faults_per_hour_after"] is None
        assert line["agent_cpu_ratio"] >= 0
        assert line["probes_failed"] == 0
        if line["run"] == "alone":
            assert (line["probes"], line["probe_ms_p50"]) == (0, None)
        else:
            assert line["probes"] > 3 and line["probe_ms_p99"] >= line["probe_ms_p50"] > 0


@pytest.mark.live
@pytest.mark.slow
def test_the_alternatives_get_the_same_sleep() -> None:
    """Each has figures or says why it cannot be had, and the machine's settings are as before."""
    settings = {path: path.read_text() for name in KSM_SETTINGS if (path := KSM / name).exists()}
    options = asleep.Options(programs=("http.server",), against=tuple(OTHERS), seconds=2.0, probe_every_s=0.3)
    lines = {line["run"]: line for line in asleep.run(options)}
    assert set(lines) == {"alone", "probed", *OTHERS}
    for name in OTHERS:
        line = lines[name]
        assert line.get("skipped") or (line["verified"] and line["probes"] > 3), line
    assert "skipped" not in lines["nothing"]
    assert abs(lines["nothing"]["saved_ratio_time_averaged"]) < 0.5
    assert {path: path.read_text() for path in settings} == settings


@contextlib.contextmanager
def _skips_what_fails(served: Served) -> Iterator[Applied]:
    try:
        yield Applied()
    except OSError:
        raise Skipped("as if it could not be had") from None


def test_a_program_that_breaks_with_an_alternative_is_not_skipped() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening: nothing answers there
        served = Served(os.getpid(), nobody.getsockname()[1], Items(10))
        with pytest.raises(ConnectionRefusedError):
            watch_other(Other(_skips_what_fails), served, seconds=0.01, probe_every_s=1.0)


def test_an_unknown_alternative() -> None:
    with pytest.raises(InvalidArgumentError, match="no such alternative"):
        list(asleep.run(asleep.Options(against=("hope",))))


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("name", ["functions-framework", "postgresql", "jupyter", "mcp", "chromium", "qemu"])
def test_a_program_holds_its_state_asleep(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = PROGRAMS[name]
    if why := program.missing():
        pytest.skip(why)
    with (
        running_agent(driver="live") as agent,
        MedesClient(agent.address) as medes,
        started(program, Sizes(keys=10, items=2000), agent) as served,
    ):
        served.state.verify(served.port)
        medes.register(name, pids=[served.pid], sandbox_id="a")
        report = medes.dedup("a").report
        assert (report.gross_saved_bytes or 0) > report.warm_bytes // 4
        for _ in range(3):
            served.state.probe(served.port)
        served.state.verify(served.port)
        medes.restore("a", eager=True)
        served.state.verify(served.port)
        monkeypatch.setattr(served.state, "expected", "0" * 64)
        with pytest.raises(CorruptError):
            served.state.verify(served.port)


def test_a_program_that_is_not_installed_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path, port: int, sizes: Sizes) -> Made:
        raise AssertionError("made all the same")

    program = Program(
        "absent", make, commands=("no-such-command",), modules=("no_such_module",), files=("no/such*",)
    )
    monkeypatch.setitem(PROGRAMS, "absent", program)
    monkeypatch.setattr(native, "probe_live", dict)
    done = CliRunner().invoke(cli, ["--json", "--program", "absent"])
    assert done.exit_code == 0, done.output
    line = json.loads(done.stdout)
    assert line["program"] == "absent"
    assert "no-such-command" in line["skipped"] and "no_such_module" in line["skipped"]
    assert "/no/such*" in line["skipped"]


def test_an_unknown_program() -> None:
    with pytest.raises(InvalidArgumentError, match="no such program"):
        asleep.select(["redis", "emacs"])


# --- what is checked, and what is summed up ----------------------------------------------------------------
class Answers(http.server.BaseHTTPRequestHandler):
    """Answers all with `body`."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_wrong_byte_is_found(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert item(1) == "1:" + "9e3779b1" * 8
    monkeypatch.setattr(Answers, "body", b"17 " + b"0" * 64)
    with pytest.raises(CorruptError, match="other items"):
        Items(10).verify(port)
    with pytest.raises(CorruptError, match="another file"):
        Files(tmp_path / "files").verify(port)
    with pytest.raises(CorruptError, match="to a probe"):
        Items(10).probe(port)


def test_each_process_is_asked_for_its_state(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Items(10)
    monkeypatch.setattr(Answers, "body", f"17 {one.expected}".encode())
    one.verify(port)
    with pytest.raises(CorruptError, match="1 of 2 processes"):
        Items(10, processes=2).verify(port)


def test_sums_over_time() -> None:
    """Asleep for 60 s with a fifth kept, then for 20 s with two fifths; awake for the last 20 s."""

    def sample(at_s: float, state: SandboxState, kept_bytes: int = 0, touched_pages: int = 0) -> Sample:
        sandbox = Sandbox(
            "bench",
            state=state,
            touched_bytes=touched_pages * native.PAGE_BYTES,
            last_dedup=DedupReport(patch_bytes=50, table_bytes=50),
            restore_count=int(state is SandboxState.WARM),
        )
        return Sample(at_s, sandbox, kept_bytes - 100)

    watched = Watched(warm_bytes=1000, report=DedupReport(warm_bytes=1200))
    watched.samples = [
        sample(0.0, SandboxState.DEDUP, 200, 3),
        sample(60.0, SandboxState.DEDUP, 400, 5),
        sample(80.0, SandboxState.WARM),
        sample(100.0, SandboxState.DEDUP, 200, 7),
    ]
    watched.agent_cpu_s = 1.0
    figures = watched.figures()
    assert figures["saved_ratio_time_averaged"] == pytest.approx((60 * 0.8 + 20 * 0.6) / 100)
    assert figures["asleep_ratio"] == pytest.approx(0.8)
    assert figures["faults_first_minute"] == 5
    assert figures["faults_per_hour_after"] == 7 * 3600 / 40  # of a second sleep, from its beginning
    assert figures["agent_cpu_ratio"] == 0.01
    assert (figures["kept_bytes"], figures["last_fault_s"]) == (200, 100.0)
