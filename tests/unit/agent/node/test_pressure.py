"""When memory counts as short."""

from __future__ import annotations

from medes.agent.node.pressure import available_ratio, judge, psi_some_avg10

PSI_IDLE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
PSI_BUSY = PSI_IDLE.replace("some avg10=0.00", "some avg10=12.50")
MEMINFO = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  {} kB\n"


def test_pressure_by_limit_psi_and_available_memory() -> None:
    assert judge(96, 100, PSI_IDLE, "").high
    assert not judge(50, 100, PSI_IDLE, MEMINFO.format(10)).high
    assert judge(0, 0, PSI_BUSY, "").high
    assert judge(0, 0, "", MEMINFO.format(10)).high
    assert not judge(0, 0, "", MEMINFO.format(500)).high
    assert "unknown" in judge(0, 0, "", "").text


def test_files_that_make_no_sense_count_as_absent() -> None:
    assert psi_some_avg10("some avg10=much") is None
    assert available_ratio("MemTotal: 0 kB\nMemAvailable: 3 kB") is None
