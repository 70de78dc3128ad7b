"""Pages that somebody makes up to fit an unkeyed checksum."""

from __future__ import annotations

import struct

from medes import native

# The first five words of the secret that XXH3 uses with seed 0: of its algorithm, known to everybody.
SECRET = struct.unpack(
    "<5Q", bytes.fromhex("b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578")
)
LOW, ALL = (1 << 32) - 1, (1 << 64) - 1


def made_up(page: bytes) -> bytes:
    """Another page with the same XXH3. It adds up words of a block, and products of their halves after an exclusive or with
    the secret: both sums are kept while five words are exchanged (native/tests/page_tags_test.cc)."""
    words = list(struct.unpack("<512Q", page))
    places = [i * 8 for i in range(5)]
    products = sum((m := words[at] ^ s) % (1 << 32) * (m >> 32) for at, s in zip(places, SECRET, strict=True))
    total = sum(words[at] for at in places)
    products &= ALL
    twice = (products >> 32) * 2
    half = min(twice, LOW)
    new = [
        SECRET[0] ^ ((products & LOW) << 32 | 1),
        SECRET[1] ^ (half << 32 | 1 << 31),
        SECRET[2] ^ ((twice - half) << 32 | 1 << 31),
    ]
    rest = (total - sum(new) - (SECRET[3] & ~LOW) - (SECRET[4] & LOW)) & ALL
    new += [(SECRET[3] & ~LOW) | (rest & LOW), (SECRET[4] & LOW) | (rest & ~LOW & ALL)]
    for at, word in zip(places, new, strict=True):
        words[at] = word
    lie = struct.pack("<512Q", *words)
    assert lie != page and native.checksum64(lie) == native.checksum64(page)
    return lie
