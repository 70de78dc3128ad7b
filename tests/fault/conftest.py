"""What most tests of the live driver begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.freezer import Freezer, freezer_of
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


@pytest.fixture(params=["v2", "v1"])
def freezer(request: pytest.FixtureRequest) -> Iterator[Freezer]:
    with freezer_of(request.param) as made:
        yield made
