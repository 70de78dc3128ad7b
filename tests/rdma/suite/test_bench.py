"""The transport benchmark over the guest's device, with perftest beside it."""

from __future__ import annotations

import shutil

import pytest

from medes.bench import perftest, transport

pytestmark = pytest.mark.rdma
TINY = transport.Sizes(
    batches=(1, 64), slab_pages=128, round_bytes=1 << 18, round_batches_max=4, rounds=2, latency_batches=5
)


def test_rdma_is_measured_beside_bare_verbs() -> None:
    lines = list(transport.measure(["rdma"], TINY))
    cases = [x for x in lines if x["benchmark"] == "transport"]
    assert len(cases) == 4
    assert all(
        c["gb_per_s"] >= 0 and c["reference"] == "verbs" and c["pages_per_s_per_core"] > 0 for c in cases
    )
    assert [x["reference"] for x in lines if x["benchmark"] == "transport_reference"][:1] == ["ib_read_bw"]


@pytest.mark.skipif(shutil.which(perftest.PROGRAM) is None, reason="perftest is not installed")
def test_perftest_gives_a_figure_on_the_same_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perftest, "ITERATIONS", 20)
    lines = list(perftest.measure([1, 64], 2))
    assert [(x["device"], x["read_bytes"], x["reads_in_flight"]) for x in lines if "skipped" not in x] == [
        ("rxe0", 4096, 2),
        ("rxe0", 262144, 2),
    ], lines
    assert all(x["gb_per_s"] > 0 for x in lines)
