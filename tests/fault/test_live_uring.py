"""Buffers registered with io_uring: the kernel holds their pages, so they stay, are reported, and stay usable."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0
BUFFER_PAGES = 256
ORDINARY_PAGES = 2048


@pytest.fixture
def deduper(tmp_path: Path) -> Iterator[Deduper]:
    deduper = Deduper(tmp_path)
    yield deduper
    deduper.close()


def _write(path: Path, seed: int) -> None:
    block = b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(4096))
    path.write_bytes(block * 8)


def test_registered_buffers_stay_and_are_reported(deduper: Deduper, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    binary, data = tmp_path / "uring", tmp_path / "data"
    source = Path(__file__).with_name("uring.c")
    subprocess.run([compiler, "-O1", "-o", str(binary), str(source)], check=True)
    _write(data, 0)
    try:
        program = Program([str(binary), str(data)])
    except AssertionError:
        pytest.skip("io_uring is not to be had here")
    with program:
        answers = set()
        for number in range(4):
            _write(data, number)
            expected = program.ask("read")
            assert expected.startswith(f"{BUFFER_PAGES * 4096} ")
            answers.add(expected)
            live = deduper.dedup([program.pid])
            assert any("io_uring" in note for note in live.notes)
            assert live.evict_result["evicted_pages"] >= ORDINARY_PAGES
            # The buffer is no part of the image. A read of the ring into it, while the rest is out, arrives.
            assert live.evict_result["evicted_pages"] < ORDINARY_PAGES + BUFFER_PAGES
            if number % 2:
                live.restore(lazy=number == 1)
            assert program.ask("read") == expected
            assert live.wait_complete(WAIT_S)
            assert program.ask("read") == expected
        assert len(answers) == 4
