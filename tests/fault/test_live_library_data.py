"""Written data of libraries (.data, relocation tables) goes with the rest, and nothing else that is a file's does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from medes import native
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0

# The digest covers every byte that the loader made read-only: relocated tables and constants.
NUMPY_PROGRAM = """
import ctypes, hashlib, sys, threading
import numpy, numpy.fft, numpy.linalg, numpy.random
threading.Thread(target=threading.Event().wait, daemon=True).start()
generator = numpy.random.RandomState(7)
matrix = generator.rand(64, 64)
with open("/proc/self/maps") as maps:
    lines = [line.split() for line in maps]
constant = [[int(x, 16) for x in l[0].split("-")] for l in lines if l[1] == "r--p" and ".so" in l[-1]]
def digest():
    h = hashlib.sha256()
    for begin, end in constant:
        h.update((ctypes.c_char * (end - begin)).from_address(begin))
    h.update(numpy.linalg.inv(matrix).tobytes())
    h.update(numpy.fft.fft(matrix).tobytes())
    h.update(numpy.random.RandomState(3).bytes(4096))
    h.update(str(numpy.float32(1) / numpy.arange(1, 9)).encode())
    return h.hexdigest()
digest()
print("ready", flush=True)
for line in sys.stdin:
    print(1, digest(), flush=True)
"""

COPY_ON_WRITE_PROGRAM = """
import ctypes, mmap, sys
file = open(sys.argv[1], "rb")
view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
view[:4096] = b"w" * 4096
print("ready", flush=True)
for line in sys.stdin:
    if line == "reset\\n":
        view.madvise(mmap.MADV_DONTNEED)
    print(1, chr(view[0]), chr(view[5000]), flush=True)
"""


def _mappings(pid: int) -> list[tuple[int, int, str, str]]:
    """(begin, end, permissions, path) of each mapping."""
    out = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        part = line.split()
        begin, end = (int(x, 16) for x in part[0].split("-"))
        out.append((begin, end, part[1], part[5] if len(part) > 5 else ""))
    return out


def _permissions(pid: int, pages: set[int] | None = None) -> dict[int, str]:
    """Of `pages`; of every page of the libraries when none are given."""
    return {
        page: permissions
        for begin, end, permissions, path in _mappings(pid)
        for page in range(begin, end, native.PAGE_BYTES)
        if (".so" in path if pages is None else page in pages)
    }


def _written_file_kib(pid: int) -> int:
    """Anonymous memory in mappings of files."""
    total, path = 0, ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            part = line.split()
            path = part[5] if len(part) > 5 else ""
        elif line.startswith("Anonymous:") and path.startswith("/"):
            total += int(line.split()[1])
    return total


def test_library_data_goes_and_comes_back(deduper: Deduper) -> None:
    pytest.importorskip("numpy")
    with Program([sys.executable, "-c", NUMPY_PROGRAM]) as program:
        expected = program.ask("digest")
        permissions = _permissions(program.pid)
        count = len(_mappings(program.pid))
        assert _written_file_kib(program.pid) > 1000
        for number in range(4):
            live = deduper.dedup([program.pid])
            assert _written_file_kib(program.pid) < 64
            assert _permissions(program.pid, set(permissions)) == permissions
            if number % 2:
                live.restore(lazy=number == 1)
            assert program.ask("digest") == expected
            assert live.wait_complete(WAIT_S)
            assert program.ask("digest") == expected
        # Most written runs are whole mappings, so that splitting costs few new ones, and only once.
        assert len(_mappings(program.pid)) < count * 1.25 + 8


def test_data_written_after_the_capture_is_kept(deduper: Deduper) -> None:
    """Whatever became anonymous before the op was given up has the same bytes."""
    with Program() as program:
        image, file, bases, _ = deduper.encode([program.pid])
        program.ask("change")
        deduper.server.evict(image, file, bases).restore(lazy=False)
        assert program.ask("check") == "intact"
        assert program.ask("exec __import__('zlib').crc32(b'abc')") == "891568578"


def test_other_private_mappings_of_files_stay(deduper: Deduper, tmp_path: Path) -> None:
    """A program may want the file's bytes back: that works only while the mapping is the file's."""
    data = tmp_path / "data"
    data.write_bytes(b"f" * 16384)
    with Program([sys.executable, "-c", COPY_ON_WRITE_PROGRAM, str(data)]) as program:
        assert program.ask("look") == "w f"
        live = deduper.dedup([program.pid])
        assert any(path == str(data) for *_, path in _mappings(program.pid))
        assert program.ask("look") == "w f"
        assert live.wait_complete(WAIT_S)
        assert program.ask("reset") == "f f"
