"""What `make install` makes, once for all tests here: in a staging root, with wheels built from this checkout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Building wheels takes a minute, installing them needs a package index."""
    for item in items:
        if "tests/install/" in str(item.path):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S))


def make(*arguments: str) -> str:
    """Output of `make`, as a user would call it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with /usr/local, /etc/medes and the units in it. Read only, please."""
    root = tmp_path_factory.mktemp("stage")
    make("install", f"DESTDIR={root}")
    return root


@pytest.fixture(scope="session")
def wheels(stage: Path) -> tuple[Path, Path]:
    """medes-client's and medes'."""
    folder = ROOT / "build" / "dist"
    (client,) = folder.glob("medes_client-*.whl")
    (medes,) = folder.glob("medes-*.whl")
    return client, medes


@pytest.fixture(scope="session")
def make_venv(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_venv(*pip arguments): the interpreter of a new virtual environment with what they install, and with no
    compiler on its path."""

    def new(*arguments: str) -> Path:
        folder = tmp_path_factory.mktemp("venv")
        subprocess.run(["/usr/bin/python3", "-m", "venv", folder], check=True)
        python = folder / "bin" / "python"
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", "--only-binary", ":all:", *arguments],
            env={**os.environ, "PATH": str(folder / "bin"), "CC": "false", "CXX": "false"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return python

    return new
