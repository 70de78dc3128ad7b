"""Host side of the RDMA tests: shows the guest's counts at the end of the same pytest report."""

from __future__ import annotations

import os

import pytest

GUEST_LINES: list[str] = []
IN_GUEST = os.environ.get("MEDES_RDMA_GUEST") == "1"

# The suite runs in the guest only; the host collects the test that boots it.
collect_ignore = [] if IN_GUEST else ["suite"]
if IN_GUEST:
    collect_ignore.append("test_rdma_guest.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if GUEST_LINES:
        terminalreporter.section("RDMA suite in the guest")
        for line in GUEST_LINES:
            terminalreporter.write_line(line)
