"""Host side of the RDMA tests: boots the guest beside the other tests, shows its counts at the end of the report."""

from __future__ import annotations

import os

import pytest

from tests.rdma.vm.guest import Guest, missing
from tests.support.seed import SEED

IN_V2_GROUPS = "tests/fault/test_live_memory_limits.py::test_a_fork_after_the_wake_does_not_outgrow_the_limit"
PYTEST = (".venv/bin/python", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider")
GUESTS: list[Guest] = []
GUEST_LINES: list[str] = []
IN_GUEST = os.environ.get("MEDES_RDMA_GUEST") == "1"

# The suite runs in the guest only; the host collects the test that boots it.
collect_ignore = [] if IN_GUEST else ["suite"]
if IN_GUEST:
    collect_ignore.append("test_rdma_guest.py")


def booted() -> Guest:
    """The guest of this run."""
    if not GUESTS:
        command = [*PYTEST, "tests/rdma/suite", IN_V2_GROUPS]
        GUESTS.append(Guest(command, timeout_s=3600, environment={"MEDES_SEED": str(SEED)}))
    return GUESTS[0]


def pytest_collection_finish(session: pytest.Session) -> None:
    runs = any(item.path.name == "test_rdma_guest.py" for item in session.items)
    if runs and not session.config.option.collectonly and not missing():
        booted()


def pytest_sessionfinish() -> None:
    for guest in GUESTS:
        guest.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if GUEST_LINES:
        terminalreporter.section("RDMA suite in the guest")
        for line in GUEST_LINES:
            terminalreporter.write_line(line)
