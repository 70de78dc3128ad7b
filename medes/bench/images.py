"""The engine on memory that is no Python process: guest RAM of a microVM, or the load image of a static program.

A file that is an ELF program is laid out as a loader would (segments at their addresses, the rest zero) and its own address
range counts as pointers. Any other file is taken as flat guest memory, of which no maps are known (value-only).
"""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medes import native
from medes.bench import dedup, dedup_baselines
from medes.bench.dedup_baselines import Outcome
from medes.errors import InvalidArgumentError, UnsupportedError

PAGE = native.PAGE_BYTES
IMAGE_BYTES_MAX = 16 << 30
PT_LOAD = 1

# Libraries that static programs are linked with here, and a call that keeps each one in.
LIBRARIES = {
    "z": ("const char *zlibVersion(void);", "zlibVersion()[0]"),
    "lz4": ("int LZ4_versionNumber(void);", "LZ4_versionNumber()"),
    "zstd": (
        "unsigned long ZSTD_compress(void*, unsigned long, const void*, unsigned long, int);",
        "(int)ZSTD_compress(0, 0, 0, 0, 1)",
    ),
    "crypto": ("void *EVP_sha256(void); int RAND_status(void);", "(EVP_sha256() != 0) + RAND_status()"),
    "sqlite3": ("int sqlite3_open(const char*, void**);", 'sqlite3_open(":memory:", (void *[1]){0})'),
}


def load(path: Path) -> native.MemoryImage:
    """The file as a memory image. Raises InvalidArgumentError for a malformed or too large program."""
    data = path.read_bytes()
    if data[:4] == b"\x7fELF":
        return _load_elf(data, str(path))
    return native.MemoryImage.from_buffer(data)


def _load_elf(data: bytes, name: str) -> native.MemoryImage:
    if len(data) < 64 or data[4:6] != b"\x02\x01":
        raise InvalidArgumentError("not a 64-bit little-endian ELF program", object=name)
    table, entry_bytes, entries = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    segments = []
    for i in range(entries):
        at = table + i * entry_bytes
        if entry_bytes < 56 or at + 56 > len(data):
            raise InvalidArgumentError("program headers lie outside the file", object=name)
        kind, _, offset, address, _, file_bytes, memory_bytes, _ = struct.unpack_from("<IIQQQQQQ", data, at)
        if kind == PT_LOAD:
            if offset + file_bytes > len(data) or memory_bytes < file_bytes:
                raise InvalidArgumentError("a segment lies outside the file", object=name)
            segments.append((address, data[offset : offset + file_bytes], memory_bytes))
    if not segments:
        raise InvalidArgumentError("no segments to load", object=name)
    begin = min(address for address, _, _ in segments) // PAGE * PAGE
    end = max(address + memory_bytes for address, _, memory_bytes in segments)
    if end - begin > IMAGE_BYTES_MAX:
        raise InvalidArgumentError("the program's image is too large", object=name)
    image = bytearray(end - begin)
    for address, content, _ in segments:
        image[address - begin : address - begin + len(content)] = content
    return native.MemoryImage.from_buffer(bytes(image), begin, value_only=False)


def build_static_programs(folder: Path, count: int = 4) -> list[Path]:
    """Programs that link the same static libraries in different order, so that the same code lies at other, unaligned
    offsets: what unikernels of one code base look like. Raises UnsupportedError without compiler or libraries."""
    if shutil.which("gcc") is None:
        raise UnsupportedError("no C compiler", hint="apt-get install gcc, or name image files")
    names = [name for name in LIBRARIES if Path(_gcc("-print-file-name=lib" + name + ".a")).is_absolute()]
    if len(names) < 3:
        raise UnsupportedError(
            "fewer than three static libraries to link",
            hint="apt-get install libzstd-dev libssl-dev liblz4-dev",
        )
    orders = list(itertools.permutations(names))
    programs = []
    for number in range(count):
        order = orders[number * (len(orders) - 1) // max(1, count - 1)]
        source = folder / f"program-{number}.c"
        source.write_text(_source(order))
        program = folder / f"program-{number}"
        _gcc(
            "-O1",
            "-static",
            "-w",
            "-o",
            str(program),
            str(source),
            *(f"-l{name}" for name in order),
            "-lm",
            "-lpthread",
            "-ldl",
        )
        programs.append(program)
    return programs


def _source(order: Sequence[str]) -> str:
    declarations = "\n".join(LIBRARIES[name][0] for name in order)
    calls = " + ".join(LIBRARIES[name][1] for name in order)
    return f"{declarations}\nint main(void) {{ return {calls}; }}\n"


def _gcc(*arguments: str) -> str:
    done = subprocess.run(
        ["gcc", *arguments], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise UnsupportedError("gcc cannot link a static program", hint=done.stderr.strip()[-300:])
    return done.stdout.strip()


def run(files: Sequence[Path], samples: int = native.DEFAULT_SAMPLES) -> Iterator[dict[str, Any]]:
    """Lines of report: each file after the first against the first as base, with each scheme. Without files, static
    programs are built and used."""
    with tempfile.TemporaryDirectory(prefix="medes-bench-") as temporary:
        folder = Path(temporary)
        paths = list(files) or build_static_programs(folder)
        if len(paths) < 2:
            raise InvalidArgumentError("at least two images: a base and a target")
        base = load(paths[0])
        slab = native.Slab.create(str(folder / "base.slab"), 1, base)
        index = dedup.index_of([slab], samples)
        known = dedup_baselines.page_digests(base)
        totals = {scheme: Outcome() for scheme in ("medes", "medes-nogroup", "zstd", "ksm")}
        for path in paths[1:]:
            image = load(path)
            for scheme, total in totals.items():
                if scheme == "zstd":
                    outcome = dedup_baselines.zstd(image)
                elif scheme == "ksm":
                    outcome = dedup_baselines.ksm(image, known)
                else:
                    outcome = dedup.encode_against(image, index, [slab], samples, scheme)
                total.add(outcome)
                yield dedup.report_line(path.name, scheme, outcome, bases="same") | {"bench": "images"}
        for scheme, total in totals.items():
            yield dedup.report_line("ALL", scheme, total, bases="same") | {"bench": "images"}
