"""What most tests of the live driver begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import Deduper, Program


@pytest.fixture
def deduper(tmp_path: Path) -> Iterator[Deduper]:
    made = Deduper(tmp_path)
    yield made
    made.close()


@pytest.fixture
def program() -> Iterator[Program]:
    with Program() as made:
        yield made
