"""Parts of one's own run the suites without a change of any file here: throw-away ones, as somebody else would name them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STORE = """
from medes.controller.registry.store import MemoryStore
from tests.conformance.store_cases import StoreCase

class Mine(StoreCase):
    name = "mine"

    def open(self, folder):
        return MemoryStore()
"""

TRANSPORT = """
from tests.conformance.transport_cases import TransportCase
from tests.support.folder_transport import FolderTransport

class Mine(TransportCase):
    name = "mine"

    def open(self, folder):
        return FolderTransport(folder)
"""

DRIVER = """
from tests.conformance.driver_cases import ImageCase

class Mine(ImageCase):
    driver = "mine"
"""

CONTRACT = """
from tests.conformance.function_contract_cases import LinesCase

class Mine(LinesCase):
    contract = "mine"
"""


def run(suite: str, folder: Path, text: str, variable: str, *options: str) -> str:
    (folder / "my_case.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *options,
        f"tests/conformance/{suite}",
    ]
    environment = os.environ | {"PYTHONPATH": str(folder), variable: "my_case:Mine"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    ("suite", "variable", "text", "chosen"),
    [
        ("test_registry_stores.py", "MEDES_REGISTRY_STORE_CASE", STORE, "mine"),
        ("test_transports.py", "MEDES_TRANSPORT_CASE", TRANSPORT, "mine and Access"),
    ],
)
def test_a_part_that_the_environment_names_is_held_to_its_contract(
    suite: str, variable: str, text: str, chosen: str, tmp_path: Path
) -> None:
    out = run(suite, tmp_path, text, variable, "-k", chosen)
    assert (found := re.search(r"^(\d+) passed, \d+ deselected", out, re.MULTILINE)) and int(found[1]) >= 5, (
        out
    )


@pytest.mark.parametrize(
    ("suite", "variable", "text"),
    [
        ("test_registry_stores.py", "MEDES_REGISTRY_STORE_CASE", STORE),
        ("test_transports.py", "MEDES_TRANSPORT_CASE", TRANSPORT),
        ("test_drivers.py", "MEDES_DRIVER_CASE", DRIVER),
        ("test_function_contracts.py", "MEDES_FUNCTION_CONTRACT_CASE", CONTRACT),
    ],
)
def test_it_is_held_to_all_that_the_projects_own_are(
    suite: str, variable: str, text: str, tmp_path: Path
) -> None:
    out = run(suite, tmp_path, text, variable, "--collect-only")
    runs = re.findall(r"::(\w+)\[(\S*)\]$", out, re.MULTILINE)
    own, mine = (
        {test for test, ids in runs if name in ids.split("-")}
        for name in (
            {
                "test_registry_stores.py": "memory",
                "test_transports.py": "folder",
                "test_drivers.py": "live",
            }.get(suite, "lines"),
            "mine",
        )
    )
    assert own == mine and len(own) >= 5
