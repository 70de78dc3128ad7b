"""A run that fails can be had again: its seed is shown, also where pytest shows little, and is the one asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDED = """
from hypothesis import given, settings, strategies as st
from tests.support.seed import SEED, rng

@settings(max_examples=3, database=None)
@given(st.integers())
def test_draws(number):
    print("drew", number)

def test_fails():
    assert SEED != 4711, f"rng {rng('a').random()}"
"""


def run_seeded(folder: Path, *arguments: str) -> str:
    file = folder / "test_seeded.py"
    file.write_text(SEEDED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--confcutdir", str(ROOT), "-p", "tests.conftest",
         "-p", "no:cacheprovider", "-rP", *arguments, str(file)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MEDES_SEED": "4711"}, timeout=120,
    )  # fmt: skip
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [(), ("-q",)])
def test_the_seed_is_shown_and_repeats_a_run(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    first, second = (run_seeded(tmp_path, *arguments) for _ in range(2))
    assert "MEDES_SEED=4711" in first.splitlines()
    told = [
        [line for line in text.splitlines() if "drew" in line or "rng 0." in line] for text in (first, second)
    ]
    assert told[0] == told[1] != []
