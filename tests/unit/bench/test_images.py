"""Memory that is no Python process: load images of programs, flat guest memory."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from medes import native
from medes.bench import images
from medes.errors import InvalidArgumentError, UnsupportedError
from tests.support import memory


def elf(segments: list[tuple[int, bytes, int]]) -> bytes:
    """A minimal ELF file of (address, content, bytes in memory)."""
    header = (
        b"\x7fELF\x02\x01"
        + bytes(26)
        + struct.pack("<Q", 64)
        + bytes(14)
        + struct.pack("<HH", 56, len(segments))
    )
    table, contents = b"", b""
    at = 64 + 56 * len(segments)
    for address, content, memory_bytes in segments:
        table += struct.pack(
            "<IIQQQQQQ", 1, 7, at + len(contents), address, 0, len(content), memory_bytes, 4096
        )
        contents += content
    return header.ljust(64, b"\0") + table + contents


def test_segments_lie_where_a_loader_puts_them(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(elf([(0x400000, b"code", 4), (0x402010, b"data", 8000)]))
    image = images.load(path)
    assert image.ranges == [(0x400000, 0x404000)]
    content = image.pages(0, image.page_count)
    assert content[:4] == b"code"
    assert content[0x2010:0x2014] == b"data"
    assert content.count(0) == len(content) - 8


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF",
        elf([]),
        elf([(0x400000, b"x", 0)]),
        elf([(0x400000, b"x", 1 << 60)]),
        elf([(0x400000, b"code", 4)])[:100],
        elf([(0x400000, b"code", 4)])[:-1],
    ],
)
def test_malformed_programs_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "program"
    path.write_bytes(data)
    with pytest.raises(InvalidArgumentError):
        images.load(path)


def test_guest_memory_with_kernel_pointers(tmp_path: Path) -> None:
    """A kernel that KASLR put elsewhere: pointers in the upper canonical half differ by one slide."""
    kernel = 0xFFFF_8880_0000_0000
    words = [
        kernel + word - memory.LIBRARY if memory.LIBRARY <= word < memory.LIBRARY + (1 << 24) else word
        for word in memory.program(40, 3)
    ]
    moved = [word + 0x1_2340_0000 if word >> 40 == kernel >> 40 else word for word in words]
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, content in zip(paths, (words, moved), strict=True):
        path.write_bytes(memory.packed(content))
    lines = {case["scheme"]: case for case in images.run(paths) if case["function"] == "ALL"}
    assert lines["ksm"]["saved_ratio"] <= 0
    assert lines["medes"]["saved_ratio"] > 0.9


def test_programs_with_the_same_libraries_in_another_order(tmp_path: Path) -> None:
    try:
        programs = images.build_static_programs(tmp_path, count=2)
    except UnsupportedError as error:
        pytest.skip(f"no static programs can be built: {error}")
    lines = {case["scheme"]: case for case in images.run(programs) if case["function"] == "ALL"}
    assert lines["medes"]["saved_ratio"] > lines["zstd"]["saved_ratio"] + 0.2
    assert lines["medes"]["warm_bytes"] % native.PAGE_BYTES == 0


def test_one_image_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(4096))
    with pytest.raises(InvalidArgumentError):
        list(images.run([tmp_path / "a"]))
