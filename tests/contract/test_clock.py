"""Agent, controller and policies ask the clock that they were given: a simulation moves it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import medes

PACKAGES = ("agent", "controller", "policy")
MACHINE = {"time.time", "time.monotonic", "time.perf_counter", "time.sleep", "datetime.now"}


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_asks_the_machine_what_time_it_is(package: str) -> None:
    files = sorted((Path(medes.__file__).parent / package).rglob("*.py"))
    assert files
    asked = [
        f"{file.relative_to(Path(medes.__file__).parent)}:{node.lineno} {ast.unparse(node)}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in MACHINE
    ]
    assert asked == []
