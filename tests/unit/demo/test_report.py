"""What the demo reports of what it measured, without a cluster."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from medes.demo.driver import Demo, FunctionRecord, InstanceRecord, p50
from medes.demo.table import cluster_line, make_table
from medes.runtimes.manifest import FunctionSpec
from medes.types import DedupReport


def spec(name: str = "one", idempotent: bool = True) -> FunctionSpec:
    return FunctionSpec(name, "m:f", Path("/"), {}, idempotent)


def entry(
    warm_bytes: int = 100, kept_bytes: int = 20, base_share_bytes: int = 0, **more: Any
) -> InstanceRecord:
    made = InstanceRecord(instance=None, cold_start_ms=50.0, warm_ms=[1.0, 3.0])  # type: ignore[arg-type]
    made.dedup = DedupReport(warm_bytes=warm_bytes, total_us=7000)
    made.kept_bytes, made.base_share_bytes = kept_bytes, base_share_bytes
    made.first_response_ms, made.complete_ms = 4.0, 9.0
    made.restored = made.answered_as_before = True
    for key, value in more.items():
        setattr(made, key, value)
    return made


def demo_of(*functions: FunctionRecord) -> Demo:
    cluster: Any = SimpleNamespace(agents=["a", "b"])
    made = Demo(cluster, [], 2)
    made.functions = list(functions)
    return made


def test_ratios_are_weighted_by_memory() -> None:
    demo = demo_of(
        FunctionRecord(spec(), [entry(100, 20, 50), entry(300, 20, 50)]),
        FunctionRecord(spec("two"), [entry(600, 60, 300)]),
    )
    demo.base_bytes, demo.base_pages_read_remote = 400, 3
    demo.transports = {"tcp"}
    report = demo.report("auto")
    one, two = report["functions"]
    assert (one["warm_bytes"], one["kept_bytes"], one["saved_ratio"]) == (400, 40, 0.65)
    assert (one["base_share_bytes"], one["gross_saved_ratio"]) == (100, 0.9)
    assert (one["dedup_ms_p50"], one["cold_start_ms_p50"], one["warm_ms_p50"]) == (7.0, 50.0, 2.0)
    assert (two["saved_ratio"], two["gross_saved_ratio"]) == (0.4, 0.9)
    assert report["cluster"] == {
        "warm_bytes": 1000,
        "kept_bytes": 100,
        "base_bytes": 400,
        "gross_saved_ratio": 0.9,
        "saved_ratio": 0.5,
        "base_pages_read_remote": 3,
    }
    assert (report["nodes"], report["transport"]) == (2, "tcp")
    assert demo.succeeded()


@pytest.mark.parametrize(
    ("record", "verified"),
    [
        (FunctionRecord(spec(), [entry(), entry()]), True),
        (FunctionRecord(spec(), [entry(), entry(answered_as_before=False)]), False),
        (FunctionRecord(spec(), [entry(), entry(restored=False)]), False),
        (FunctionRecord(spec(), [entry(), entry(dedup=None, restored=False)]), True),
        (FunctionRecord(spec(), [entry(dedup=None)]), False),
        (FunctionRecord(spec(idempotent=False), [entry()]), None),
        (FunctionRecord(spec(idempotent=False), [entry(restored=False)]), False),
    ],
)
def test_state_counts_as_verified_only_when_every_restored_instance_proved_it(
    record: FunctionRecord, verified: bool | None
) -> None:
    assert record.state_verified() is verified
    every = all(e.dedup is not None for e in record.instances)
    assert demo_of(record).succeeded() == (verified is not False and every)


def test_a_failure_fails_the_demo() -> None:
    demo = demo_of(FunctionRecord(spec(), [entry()]))
    assert demo.succeeded()
    demo.failures.append("one-1: dedup: store full")
    assert not demo.succeeded()


def test_nothing_measured_is_not_zero() -> None:
    summary = FunctionRecord(spec(), [entry(dedup=None, first_response_ms=None)]).summary()
    assert summary["restore_first_response_ms_p50"] is None
    assert summary["dedup_ms_p50"] is None
    assert summary["saved_ratio"] == 0.0
    assert p50([None, 1.0, 3.0]) == 2.0


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    long = entry(
        warm_bytes=1_234_000_000, kept_bytes=123_400_000, cold_start_ms=12345.6, first_response_ms=1234.5
    )
    demo = demo_of(FunctionRecord(spec("mapreduce"), [long]), FunctionRecord(spec("x", False), [entry()]))
    output = io.StringIO()
    report = demo.report("tcp")
    Console(file=output, width=80).print(make_table(report))
    text = output.getvalue()
    assert "…" not in text
    assert "verified" in text and "12346" in text
    assert "% gross)" in cluster_line(report)
