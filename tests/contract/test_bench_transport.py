"""The transport benchmark runs tiny, so that it cannot rot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from medes import native, plugins
from medes.bench import perftest, transport
from medes.cli.bench_transport import cli
from medes.errors import UnsupportedError
from medes.plugins import Kind
from tests.support.folder_transport import VARIABLE, FolderTransport

TINY = transport.Sizes(batches=(1, 8), slab_pages=64, round_bytes=1 << 16, round_batches_max=4, rounds=2)


def _has_device() -> bool:
    try:
        return bool(native.rdma_devices())
    except UnsupportedError:
        return False


OUTPUT = """
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 262144     1000             81.20              77.04              0.000308
---------------------------------------------------------------------------------------
"""


def test_every_case_moves_bytes_and_has_a_reference() -> None:
    lines = list(transport.measure(["local", "tcp"], TINY))
    assert [x["benchmark"] for x in lines].count("transport_setup") == 2
    cases = [x for x in lines if x["benchmark"] == "transport"]
    assert {(c["transport"], c["pages"], c["scattered"]) for c in cases} == {
        (t, p, s) for t in ("local", "tcp") for p in (1, 8) for s in (False, True)
    }
    setups = [x["connect_us"] for x in lines if x["benchmark"] == "transport_setup"]
    assert all(s["n"] >= 20 and s["max"] >= s["p99"] for s in setups)
    assert all(c["gb_per_s"] > 0 and c["reference_gb_per_s"] > 0 and c["latency_us"]["n"] > 0 for c in cases)


def test_figures_say_how_many_samples_and_what_they_count() -> None:
    wanted = 30
    sizes = transport.Sizes(**{**vars(TINY), "batches": (8,), "latency_batches": wanted})
    cases = [x for x in transport.measure(["local"], sizes) if x["benchmark"] == "transport"]
    for case in cases:
        latency = case["latency_us"]
        assert latency["n"] >= wanted and latency["max"] >= latency["p99"] >= latency["p50"] > 0
        # A contiguous batch is one read of eight pages: reads and pages must not be taken for one another.
        pages_per_read = case["read_bytes"] // native.PAGE_BYTES
        assert pages_per_read == (1 if case["scattered"] else 8)
        ratio = case["pages_per_s_per_core"] / case["reads_per_s_per_core"]
        assert ratio == pytest.approx(pages_per_read, rel=0.01)


def test_tls_is_measured_without_being_given_certificates() -> None:
    lines = list(transport.measure(["tcp+tls"], TINY))
    assert [x["transport"] for x in lines if x["benchmark"] == "transport" and x["gb_per_s"] > 0] == [
        "tcp+tls"
    ] * 4
    (setup,) = (x for x in lines if x["benchmark"] == "transport_setup")
    assert setup["connect_us"]["n"] == setup["reference_connect_us"]["n"] >= 20


def test_a_registered_transport_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(
        plugins.OWN, Kind.TRANSPORT, {"folder": f"{FolderTransport.__module__}:{FolderTransport.__name__}"}
    )
    with pytest.raises(UnsupportedError, match="no shared folder"):
        list(transport.measure(["folder"], TINY))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    lines = list(transport.measure(["folder"], TINY))
    assert {x["transport"] for x in lines} == {"folder"} and len(lines) == 5
    assert all(x["gb_per_s"] > 0 for x in lines if x["benchmark"] == "transport")


def test_what_is_not_registered_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="carrier-pigeon"):
        list(transport.measure(["carrier-pigeon"], TINY))


@pytest.mark.skipif(_has_device(), reason="this machine has an RDMA device")
def test_what_cannot_run_is_skipped_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "OWN", ())
    case, reference = transport.measure(sizes=TINY)
    assert "RDMA" in case["skipped"] or "libibverbs" in case["skipped"]
    assert reference["reference"] == "ib_read_bw" and reference["skipped"]
    with pytest.raises(UnsupportedError):
        list(transport.measure(["rdma"], TINY))
    with pytest.raises(UnsupportedError):
        CliRunner().invoke(cli, ["--transport", "rdma"], catch_exceptions=False)


def test_perftest_is_asked_for_what_the_reader_sends_and_its_answer_is_read() -> None:
    assert perftest.sizes_of(1, 2) == (4096, 2)
    assert perftest.sizes_of(64, 2) == (262144, 2)
    assert perftest.sizes_of(512, 2) == (262144, 16)
    assert perftest.sizes_of(4096, 16) == (262144, 128)
    assert perftest.average_bytes_per_s(OUTPUT) == pytest.approx(77.04 * 2**20)
    assert perftest.average_bytes_per_s("Unable to init the socket connection") is None


def test_command_prints_one_json_line_a_case() -> None:
    flags = ["--transport", "tcp", "--pages", "4", "--rounds", "1", "--round-mb", "1", "--json"]
    result = CliRunner().invoke(cli, flags, catch_exceptions=False)
    assert result.exit_code == 0
    lines = [json.loads(x) for x in result.output.splitlines()]
    assert [x["benchmark"] for x in lines] == ["transport_setup", "transport", "transport"]
    assert all(x["kernel"] for x in lines)
