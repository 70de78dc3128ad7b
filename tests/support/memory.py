"""Deterministic memory contents for tests of the dedup engine."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from medes import native

PAGE = native.PAGE_BYTES
WORDS = PAGE // 8
LIBRARY = 0x7F12_3400_0000  # in the range that the value-only normaliser takes for pointers
MASK = (1 << 64) - 1


def splitmix(seed: int) -> Iterator[int]:
    """SplitMix64: the same numbers everywhere, for ever."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def program(pages: int, seed: int) -> list[int]:
    """Words as a program leaves them: zeros, small numbers, pointers, text, noise."""
    numbers = splitmix(seed)
    words = []
    for _ in range(pages * WORDS):
        kind, value = next(numbers) % 8, next(numbers)
        if kind < 2:
            words.append(0)
        elif kind == 2:
            words.append(value % 200)
        elif kind < 6:
            words.append(LIBRARY + value % (1 << 24) // 16 * 16)
        elif kind == 6:
            words.append(0x20646573_6564656D + value % 4)
        else:
            words.append(value)
    return words


def other_process(words: list[int], slide: int, seed: int, change_one_in: int = 20) -> list[int]:
    """The same program elsewhere: its pointers slid, some words its own."""
    numbers = splitmix(seed)
    out = []
    for word in words:
        if LIBRARY <= word < LIBRARY + (1 << 24):
            word += slide
        if next(numbers) % change_one_in == 0:
            word = next(numbers) if next(numbers) % 2 else (word + 24) & MASK
        out.append(word)
    return out


def packed(words: list[int]) -> bytes:
    return struct.pack(f"<{len(words)}Q", *words)


def encode_against(
    target: bytes, base: bytes, folder: Path, samples: int = 8, group_pages: int | None = None
) -> tuple[native.EncodedImage, native.MemoryImage, native.BaseSet]:
    """The engine's whole path for flat buffers, with `base` as the one base (id 7)."""
    image = native.MemoryImage.from_buffer(target)
    slab = native.Slab.create(str(folder / "base.slab"), 7, native.MemoryImage.from_buffer(base))
    try:
        index = native.FingerprintIndex()
        known = slab.fingerprint(samples)
        index.insert(7, known.hashes, known.positions, samples)
        prints = native.fingerprint(image, samples)
        plan = native.plan_windows(image, prints, index.lookup(prints.hashes, samples))
        bases = native.BaseSet()
        bases.add_local(slab)
        return native.encode(image, plan, bases, group_pages=group_pages), image, bases
    finally:
        slab.unlink()
