"""Packed fingerprints for tests: deterministic, distinct per base unless asked for."""

from __future__ import annotations

import random
import struct

K = 8


def hashes(seed: int, pages: int, k: int = K) -> bytes:
    """pages * k non-zero u64, the same for the same seed."""
    rng = random.Random(seed)
    return struct.pack(f"<{pages * k}Q", *(rng.getrandbits(64) | 1 for _ in range(pages * k)))


def positions(pages: int, k: int = K) -> bytes:
    """pages * k u8, in units of 16 bytes (a 64-byte window starts at 0 to 252)."""
    return bytes((i * 7) % 253 for i in range(pages * k))


def unpack_location(value: int) -> tuple[int, int, int] | None:
    """(slot, page, position), or None for no location."""
    if value == 2**64 - 1:
        return None
    return value >> 48, (value >> 16) & 0xFFFFFFFF, (value >> 8) & 0xFF


def located(locations: bytes, k: int = K) -> list[list[set[tuple[int, int, int]]]]:
    """Page → sample → set of up to two locations."""
    values = struct.unpack(f"<{len(locations) // 8}Q", locations)
    samples = [{x for v in values[i : i + 2] if (x := unpack_location(v))} for i in range(0, len(values), 2)]
    return [samples[i : i + k] for i in range(0, len(samples), k)]
