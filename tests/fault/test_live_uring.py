"""Memory that io_uring holds on to, whether it says so or not: it stays, is reported, and stays usable."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medes import native
from medes.errors import UnsupportedError
from tests.fault.test_live_faults import adopt, kill_at
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0
BUFFER_PAGES = 256
ORDINARY_PAGES = 2048
PLACE_BYTES = 4 << 20  # native/process/move_out.cc


def _compiled(name: str, folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler, "-O1", "-o", str(folder / name), str(source)], check=True)
    return folder / name


def _write(path: Path, seed: int) -> None:
    block = b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(4096))
    path.write_bytes(block * 8)


def test_registered_buffers_stay_and_are_reported(deduper: Deduper, tmp_path: Path) -> None:
    binary, data = _compiled("uring", tmp_path), tmp_path / "data"
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


@pytest.mark.parametrize("how", ["hole", "provided", "own", "alone"])
def test_pinned_memory_that_nothing_lists_is_found(deduper: Deduper, tmp_path: Path, how: str) -> None:
    binary = _compiled("rings", tmp_path)
    try:
        program = Program([str(binary), how])
    except AssertionError:
        pytest.skip("this kernel has no such ring")
    with program:
        for number in range(4):
            live = deduper.dedup([program.pid])
            assert live.evict_result["evicted_pages"] >= ORDINARY_PAGES
            assert any("may hold on to stay" in note for note in live.notes)
            if number % 2:
                live.restore(lazy=False)
                assert live.wait_complete(WAIT_S)
            assert program.ask("use") == "right"
            assert live.wait_complete(WAIT_S)


@pytest.mark.parametrize(
    "point", ["evict.discarding", "evict.discarded_one", "evict.moved", "evict.discarded"]
)
def test_killed_while_pages_move_out(tmp_path: Path, point: str) -> None:
    try:
        program = Program([str(_compiled("rings", tmp_path)), "own"])
    except AssertionError:
        pytest.skip("this kernel has no such ring")
    with program:
        at_first = _mapped_bytes(program.pid)
        kill_at(point, program.pid, tmp_path, "evict")
        server, live = adopt(tmp_path)
        assert live is not None
        assert program.ask("use") == "right"
        live.restore(lazy=False)
        assert live.wait_complete(WAIT_S)
        assert program.ask("use") == "right"
        server.close()
        # What pages are moved through was left behind at some of the points: until the next op.
        (folder := tmp_path / "next").mkdir(0o700)
        deduper = Deduper(folder)
        live = deduper.dedup([program.pid])
        assert _mapped_bytes(program.pid) < at_first + PLACE_BYTES
        assert program.ask("use") == "right"
        assert live.wait_complete(WAIT_S)
        deduper.close()


def _mapped_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * native.PAGE_BYTES


def test_a_device_that_works_on_memory_is_named(deduper: Deduper) -> None:
    """The null device under a name that only such a device has, in a /dev of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    opens = "f = open('/dev/nvidia0'); print('ready', flush=True); import sys; sys.stdin.read()"
    script = 'mount -t tmpfs none /dev && mknod /dev/nvidia0 c 1 3 && exec "$0" -c "$1"'
    with (
        Program(["unshare", "-m", "sh", "-c", script, sys.executable, opens]) as program,
        pytest.raises(UnsupportedError, match="/dev/nvidia0"),
    ):
        deduper.dedup([program.pid])
