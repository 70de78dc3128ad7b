"""Who runs on simulated time asks the clock, and the chance, that it was given: a simulation moves them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import medes

MEDES = Path(medes.__file__).parent
PACKAGES = ("agent", "controller", "policy", "drivers", "transport", "runtimes/host", "runtimes/contracts")
MODULES = {"time", "datetime", "secrets", "random", "uuid"}
CALLS = {"os.urandom", "os.getrandom"}
# Which files go around them, and what for.
ALLOWED = {
    "agent/peer_api/peer_handlers.py": {"secrets"},  # nobody may guess it
    "agent/store/store_key.py": {"secrets"},  # nobody may guess it
    "controller/registry/redis_store.py": {"secrets"},  # a store is opened by its address alone
    "drivers/eager.py": {"time"},  # measures a thread that no simulation has
    "runtimes/host/janitor.py": {"time"},  # a process of its own, without the package
    "transport/rdma/reference_peer.py": {"time"},  # a process of its own
}


def asked_of_the_machine(source: str) -> set[str]:
    """Modules and calls by which a file gets at time or chance without being given it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module or ""} & MODULES
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & CALLS
        elif isinstance(node, ast.Attribute):
            found |= {ast.unparse(node)} & CALLS
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_asks_the_machine_for_time_or_chance(package: str) -> None:
    files = sorted((MEDES / package).rglob("*.py"))
    assert files
    asked = {str(file.relative_to(MEDES)): asked_of_the_machine(file.read_text()) for file in files}
    allowed = {name: why for name, why in ALLOWED.items() if name.startswith(f"{package}/")}
    assert {name: found for name, found in asked.items() if found} == allowed


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import time as t",
        "from time import time_ns",
        "def late():\n    from datetime import datetime",
        "import secrets",
        "from random import randrange",
        "import os\nos.urandom(8)",
        "from os import urandom",
    ],
)
def test_every_way_to_ask_is_seen(source: str) -> None:
    assert asked_of_the_machine(source)


def test_the_loops_own_timers_and_the_given_clock_are_nobodys_fault() -> None:
    assert not asked_of_the_machine("import asyncio\nasyncio.get_running_loop().time()\nclock.now_s()")
