"""Boots a guest with a Soft-RoCE device and runs tests/rdma/suite in it; its counts come into this report.

It emulates a machine for some ten minutes. So it is booted as soon as it is known that this test will run (conftest.py),
beside the tests before this one, which wait for most of their time.

The guest has what this host may lack: memory cgroups of v2. So the test of a memory limit that showed a fault there
first runs in it, too."""

from __future__ import annotations

import re

import pytest

from tests.rdma.conftest import GUEST_LINES, booted
from tests.rdma.vm import guest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3900),
    pytest.mark.skipif(bool(guest.missing()), reason=guest.missing() or "a guest can be booted"),
]


def test_suite_passes_in_guest() -> None:
    result = booted().wait()
    tail = result.output[-6000:]
    assert result.status == 0, (
        f"guest suite failed (status {result.status}):\n{tail}\n{result.console[-2000:]}"
    )
    summary = re.search(r"^.*\b(\d+) passed.*$", result.output, re.MULTILINE)
    assert summary is not None, f"no test ran in the guest:\n{tail}"
    GUEST_LINES.append(summary.group(0))
    GUEST_LINES.extend(line for line in result.output.splitlines() if line.startswith("SKIPPED"))
    assert int(summary.group(1)) > 0
