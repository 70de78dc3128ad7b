"""Where a measurement was taken."""

from __future__ import annotations

from pathlib import Path

import pytest

import medes
from medes.bench import machine


def test_facts_are_of_json_and_the_load_is_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.machine()
    assert {"medes", "commit", "cpu", "cpus", "kernel", "memory_bytes", "python", "load_average"} == set(
        facts
    )
    assert all(isinstance(value, str | int | float) for value in facts.values())
    monkeypatch.setattr("os.getloadavg", lambda: (77.0, 0.0, 0.0))
    assert machine.machine()["load_average"] == 77.0


def test_a_repository_around_an_installation_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine._commit()  # of this checkout
    installed = tmp_path / "site-packages" / "medes" / "__init__.py"
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(medes, "__file__", str(installed))
    assert machine._commit() == ""
